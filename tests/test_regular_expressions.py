"""Every regular expression of the product takes time in proportion to its text, however hostile the text is.

The expressions are read from the source. Each searches texts that repeat what expressions usually stumble over, after
beginnings and before endings that let a match fail late. Time is CPU time, and the least of three tries.
"""

import ast
import importlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from minigpt4_bots.markup import safe_markdown
from minigpt4_bots.telegram_markup import telegram_html

from minigpt4_serve.boxes import colour_phrases, parse_groundings, plain_text
from minigpt4_serve.client.untrusted_text import delimit, sanitize

ROOT = Path(__file__).parents[1]
PACKAGES = ("minigpt4_serve", "integrations/langchain_minigpt4", "integrations/mcp_minigpt4", "bots/minigpt4_bots")
BOX = "{<1><2><3><4>}"
BEGINNINGS = ("", "[](", "{", BOX, "<", "<p>", "```", "http://", "data:image/a", "image_1", ".", "\n")
REPEATED = (
    *(" ", "\n", "a", "1", "é", ".", "-", "_", "~", "`", "#", "*", "(", "[", "{", "<", ")"),
    *(
        "a.",
        "1.",
        "[](",
        "[a",
        "<p>",
        "<:",
        "data:",
        "data:image/",
        ";a",
        "image_1 ",
        "http",
        " {",
        "*a",
        "||",
        "\n ",
        "``a",
    ),
)
ENDINGS = ("", "`", "\x00")
LENGTH = 8000  # characters: a linear search takes less than 2 ms, a quadratic one more than 100
BOUND_S = 0.1
ANCHORED = {"match", "fullmatch"}
"""Methods that try one beginning; the others try all."""


def _expressions() -> Iterator[tuple[str, str, int, str]]:
    """(place, pattern, flags, method): literal patterns of ``re.…`` calls, by the method that searches with them."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            calls = [
                node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
            ]
            methods = [node.func for node in calls if isinstance(node.func, ast.Attribute)]
            of_re = [call for call in calls if _is_of_re(call.func)]
            if not of_re:
                continue
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            module = importlib.import_module(name.removeprefix("integrations.").removeprefix("bots."))
            for key, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    used = {method.attr for method in methods if ast.unparse(method.value) == key}
                    for method in sorted(used & ANCHORED or {"finditer"}) if used <= ANCHORED else ["finditer"]:
                        yield f"{name}.{key}", value.pattern, value.flags, method
            for call in of_re:
                pattern, method = call.args[0], ast.unparse(call.func).removeprefix("re.")
                if isinstance(pattern, ast.Constant) and method != "compile":
                    yield f"{name}:{call.lineno}", pattern.value, 0, method if method in ANCHORED else "finditer"


def _is_of_re(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "re"


EXPRESSIONS = list(_expressions())
TEXTS = [
    (beginning + unit * LENGTH)[:LENGTH] + ending
    for beginning, unit, ending in itertools.product(BEGINNINGS, REPEATED, ENDINGS)
]


def _cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _use(search: Callable[[str], object], text: str) -> None:
    found = search(text)
    if isinstance(found, Iterator):
        all(found)  # finditer searches when it is asked


def _is_slow(work: Callable[[], object]) -> bool:
    return all(_cpu_seconds(work) > BOUND_S for _ in range(3))


def test_the_expressions_are_found() -> None:
    assert len(EXPRESSIONS) >= 35
    assert {"bots.minigpt4_bots.markup._LINK", "minigpt4_serve.boxes._GROUNDED"} <= {place for place, *_ in EXPRESSIONS}


@pytest.mark.parametrize(("place", "pattern", "flags", "method"), EXPRESSIONS, ids=[place for place, *_ in EXPRESSIONS])
def test_an_expression_searches_in_linear_time(place: str, pattern: str, flags: int, method: str) -> None:
    search = getattr(re.compile(pattern, flags), method)
    slow = next((text[:20] for text in TEXTS if _is_slow(lambda text=text: _use(search, text))), None)  # type: ignore[misc]
    assert slow is None, place


@pytest.mark.parametrize(
    "read",
    [
        plain_text,
        parse_groundings,
        colour_phrases,
        lambda text: colour_phrases(text, finished=False),
        lambda text: delimit(sanitize(text, 10_000)[0]),
        safe_markdown,
        telegram_html,
    ],
    ids=["plain_text", "parse_groundings", "colour_phrases", "unfinished", "delimit", "safe_markdown", "telegram_html"],
)
def test_readers_of_answers_take_linear_time(read: Callable[[str], object]) -> None:
    texts = [(beginning + unit * 4000)[:4000] for beginning in ("", "[](", BOX, "<") for unit in REPEATED]
    slow = [text[:20] for text in texts if all(_cpu_seconds(lambda text=text: read(text)) > 0.5 for _ in range(3))]  # type: ignore[misc]
    assert not slow


def test_the_quadratic_ones_would_be_found() -> None:
    assert _is_slow(lambda: re.search(r"\s*x", " " * (2 * LENGTH)))
