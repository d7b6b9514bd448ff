"""Prints every circle of imports among the project's modules, imports inside functions included; 1 if there is one.

``python -m tools.import_circles``. Imports for type checkers only don't count.
"""

import sys
from collections.abc import Iterable, Mapping

import grimp

__all__ = ["find_circles", "import_graph", "main"]

PACKAGES = ("minigpt4_serve", "langchain_minigpt4", "mcp_minigpt4", "minigpt4_bots", "tools")


def import_graph() -> dict[str, set[str]]:
    """Which module of the project imports which others."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def find_circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of two or more modules that import each other, directly or through others of the set, sorted.

    A module belongs to a circle when it can be reached from itself.
    """
    reachable = {module: _reachable(module, imports) for module in imports}
    circles = {
        tuple(sorted(other for other in reached if module in reachable.get(other, ())))
        for module, reached in reachable.items()
        if module in reached
    }
    return [list(circle) for circle in sorted(circles)]


def _reachable(module: str, imports: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(imports.get(module, ()))
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(imports.get(current, ()))
    return found


def main() -> int:
    """Print the circles; 1 if there are any."""
    circles = find_circles(import_graph())
    for circle in circles:
        print("circle of imports:", " ↔ ".join(circle))
    return 1 if circles else 0


if __name__ == "__main__":
    sys.exit(main())
