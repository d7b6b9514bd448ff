"""Print the share of each package's branches and lines that the tests run, and fail if one is below its floor.

Reads the data that ``make coverage`` recorded. Floors rise with the coverage; a commit that lowers one says why.
"""

import io
import sys

from coverage import Coverage

FLOORS = {
    "minigpt4_serve/*.py": 94,
    "minigpt4_serve/engine/*": 94,
    "minigpt4_serve/server/*": 90,
    "minigpt4_serve/model/*": 96,
    "minigpt4_serve/weights/*": 94,
    "minigpt4_serve/client/*": 94,
    "minigpt4_serve/evaluation/*": 93,
    "integrations/langchain_minigpt4/*": 95,
    "integrations/mcp_minigpt4/*": 79,
    "bots/minigpt4_bots/*": 79,
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
