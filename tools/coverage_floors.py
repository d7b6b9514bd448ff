"""Print the share of each package's branches and lines that the tests run, and fail if one is below its floor.

Reads the data that ``make coverage`` recorded. Floors rise with the coverage; a commit that lowers one says why.
"""

import io
import sys

from coverage import Coverage

FLOORS = {
    "minigpt4_serve/*.py": 80,
    "minigpt4_serve/engine/*": 91,
    "minigpt4_serve/server/*": 82,
    "minigpt4_serve/model/*": 92,
    "minigpt4_serve/weights/*": 91,
    "minigpt4_serve/client/*": 93,
    "minigpt4_serve/evaluation/*": 85,
    "integrations/langchain_minigpt4/*": 93,
    "integrations/mcp_minigpt4/*": 72,
    "bots/minigpt4_bots/*": 76,
}
"""Percent of branches and lines by package, a little below what a run measures: threads and processes vary."""


def main() -> int:
    """Print a line for each package; 1 if one is below its floor."""
    measured = Coverage()
    measured.load()
    failed = False
    for package, floor in FLOORS.items():
        percent = measured.report(include=[package], file=io.StringIO())
        verdict = f"floor {floor} %"
        if percent < floor:
            failed = True
            verdict = f"below its floor of {floor} %"
        print(f"{package:35} {percent:5.1f} %   {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
