"""SECURITY.md: each promise names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = [
    line
    for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and "tests/" in line
]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize(
    "about", ["stranger", "holder of a key", "local user", "author of an image", "author of a model"]
)
def test_promises_are_made_about_everyone(about: str) -> None:
    assert any(about in line.split("|")[1] for line in PROMISES)


@pytest.mark.parametrize("line", PROMISES, ids=lambda line: line.split("|")[2].strip()[:50])
def test_each_promise_names_tests_that_exist(line: str) -> None:
    cell = line.split("|")[3]
    named = _TEST.findall(cell)
    assert named
    assert not re.sub(r"[ ,]", "", _TEST.sub("", cell))
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, file
