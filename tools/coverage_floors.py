"""What share of each package's branches and lines the tests run, and whether one has fallen below its floor.

Reads the data that ``make coverage`` recorded. A floor goes up with the coverage, and down only with a reason in the
commit that lowers it.
"""

import io
import sys

from coverage import Coverage

FLOORS = {
    "minigpt4_serve/*.py": 85,
    "minigpt4_serve/engine/*": 94,
    "minigpt4_serve/server/*": 85,
    "minigpt4_serve/model/*": 96,
    "minigpt4_serve/weights/*": 95,
    "minigpt4_serve/client/*": 97,
    "minigpt4_serve/web/*": 95,
    "integrations/langchain_minigpt4/*": 96,
    "integrations/mcp_minigpt4/*": 76,
    "bots/minigpt4_bots/*": 78,
}
"""Percent of branches and lines by package, a little below what a run measures: threads and processes vary."""


def main() -> int:
    """Print a line for each package; 1 if one is below its floor."""
    measured = Coverage()
    measured.load()
    fallen = 0
    for package, floor in FLOORS.items():
        percent = measured.report(include=[package], file=io.StringIO())
        fallen += percent < floor
        verdict = f"below its floor of {floor} %" if percent < floor else f"floor {floor} %"
        print(f"{package:35} {percent:5.1f} %   {verdict}")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
