"""Every regular expression of the product takes time in proportion to its text, however hostile the text is.

The expressions are read from the source. Those that are put together at run time stand in ``AT_RUN_TIME``, as examples.
Each searches texts that repeat what expressions usually stumble over, after beginnings and before endings that let a
match fail late. Time is CPU time, and the least of three tries.
"""

import ast
import importlib
import inspect
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from minigpt4_bots.core.markup import safe_markdown
from minigpt4_bots.telegram.markup import telegram_html

from minigpt4_serve.boxes import colour_phrases, parse_groundings, plain_text
from minigpt4_serve.client.untrusted_text import delimit, sanitize
from minigpt4_serve.images.pasted import find_pasted_images
from minigpt4_serve.weights import key_maps

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
LINES = (
    "A" * 76 + "\n",
    "Qk" + "A" * 74 + "\n",
    "data:;base64," + "A" * 76 + "\n",
    "data:image/png;base64,AAAA ",
    "<p>a</p> " + BOX,
)
LENGTH = 24_000  # characters: a linear search takes less than 10 ms, a quadratic one more than 150
BOUND_S = 0.05
ANCHORED = {"match", "fullmatch"}
"""Methods that try one beginning; the others try all."""
AT_RUN_TIME = {
    ("logs", r"""'|'.join([*words, '\\b\\d{6,12}:[\\w-]{30,}'])"""): (r"a\-secret|\b\d{6,12}:[\w-]{30,}",),
    ("messages", "f'<@!?{self.bot_id}>'"): ("<@!?1234>",),
    ("messages", r"""f'@{re.escape(self._bot.username)}\\b[,:]?\\s*'"""): (r"@a_bot\b[,:]?\s*",),
    ("key_maps", "pattern"): tuple(
        pattern
        for key_map in (key_maps.VISION, key_maps.QFORMER, key_maps.LLM, key_maps.CHECKPOINT)
        for pattern, _ in key_map
    ),
}
"""What expressions look like that depend on more than constants, by the name of the module's file and their source."""


@dataclass(frozen=True)
class Expression:
    """An expression of the product.

    Attributes:
        place: for people: the module, and a name or a line.
        method: of a compiled pattern, as the product searches with it.
    """

    place: str
    pattern: str | bytes
    flags: int
    method: str


def _expressions(folder: Path, file: Path) -> Iterator[Expression]:
    """All expressions of a module; ``folder`` is the one that Python imports it from."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    of_re = [call for call in calls if _is_of_re(call.func)]
    if not of_re:
        return
    name = ".".join(file.relative_to(folder).with_suffix("").parts)
    constants = vars(importlib.import_module(name))
    methods = [node.func for node in calls if isinstance(node.func, ast.Attribute)]
    compiled = {key: value for key, value in constants.items() if isinstance(value, re.Pattern)}
    for key, value in compiled.items():
        used = {method.attr for method in methods if ast.unparse(method.value) == key}
        for method in sorted(used & ANCHORED or {"finditer"}) if used <= ANCHORED else ["finditer"]:
            yield Expression(f"{name}.{key}", value.pattern, value.flags & ~re.UNICODE, method)
    for call in of_re:
        method = ast.unparse(call.func).removeprefix("re.")
        if method in ("escape", "Pattern", "error"):
            continue
        arguments = inspect.signature(getattr(re, method)).bind(
            *call.args, **{str(k.arg): k.value for k in call.keywords}
        )
        flags = _evaluate(arguments.arguments.get("flags"), constants, 0)
        for pattern in _patterns(arguments.arguments["pattern"], file.stem, constants):
            if all((pattern, flags) != (one.pattern, one.flags & ~re.UNICODE) for one in compiled.values()):
                yield Expression(f"{name}:{call.lineno}", pattern, flags, method if method in ANCHORED else "finditer")


def _patterns(argument: ast.expr, stem: str, constants: Mapping[str, object]) -> tuple[str | bytes, ...]:
    """What an argument may be: one value if it depends on the module's constants only."""
    try:
        return (_evaluate(argument, constants, None),)
    except NameError:
        source = ast.unparse(argument)
        assert (stem, source) in AT_RUN_TIME, f"give an example of it in AT_RUN_TIME: {(stem, source)}"
        return AT_RUN_TIME[stem, source]


def _evaluate(node: ast.expr | None, constants: Mapping[str, object], default: Any) -> Any:
    if node is None:
        return default
    return eval(compile(ast.Expression(node), "an argument", "eval"), dict(constants))


def _is_of_re(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "re"


EXPRESSIONS = [
    expression
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
    for expression in _expressions((ROOT / package).parent, file)
]
TEXTS = [
    (beginning + unit * LENGTH)[:LENGTH] + ending
    for beginning, unit, ending in itertools.product(BEGINNINGS, REPEATED, ENDINGS)
]


def _cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _use(search: Callable[[str | bytes], object], text: str | bytes) -> None:
    found = search(text)
    if isinstance(found, Iterator):
        all(found)  # finditer searches as it is iterated


def _is_slow(work: Callable[[], object]) -> bool:
    return all(_cpu_seconds(work) > BOUND_S for _ in range(3))


def _slow_text(pattern: str | bytes, flags: int, method: str) -> str | None:
    """The beginning of a text that takes too long, if there is one. Expressions of bytes search it in UTF-8."""
    search = getattr(re.compile(pattern, flags), method)
    for text in TEXTS:
        given = text.encode() if isinstance(pattern, bytes) else text
        if _is_slow(lambda given=given: _use(search, given)):  # type: ignore[misc]
            return text[:20]
    return None


def test_the_expressions_are_found() -> None:
    assert len(EXPRESSIONS) >= 50
    places = {expression.place.split(".", 1)[-1].split(".")[-1] for expression in EXPRESSIONS}
    assert {"_LINK", "_GROUNDED"} <= places
    found = {expression.pattern for expression in EXPRESSIONS}
    for examples in AT_RUN_TIME.values():
        assert found.issuperset(examples), "no longer in the product"


def test_every_use_of_re_is_seen() -> None:
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from re import|import re as)", text, re.MULTILINE), file


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=[expression.place for expression in EXPRESSIONS])
def test_an_expression_searches_in_linear_time(expression: Expression) -> None:
    assert _slow_text(expression.pattern, expression.flags, expression.method) is None


@pytest.mark.parametrize(
    "read",
    [
        plain_text,
        parse_groundings,
        colour_phrases,
        lambda text: colour_phrases(text, finished=False),
        lambda text: delimit(sanitize(text, 10_000)[0]),
        lambda text: list(find_pasted_images(text)),
        safe_markdown,
        telegram_html,
    ],
    ids=[
        *("plain_text", "parse_groundings", "colour_phrases", "unfinished", "delimit", "find_images"),
        *("safe_markdown", "telegram_html"),
    ],
)
def test_readers_of_answers_take_linear_time(read: Callable[[str], object]) -> None:
    texts = [(beginning + unit * 4000)[:4000] for beginning in ("", "[](", BOX, "<") for unit in REPEATED + LINES]
    slow = [text[:20] for text in texts if all(_cpu_seconds(lambda text=text: read(text)) > 0.5 for _ in range(3))]  # type: ignore[misc]
    assert not slow


# A literal after what an operand can follow, so that a division isn't taken for one.
_JS_LITERAL = re.compile(r"(?:[=(,:?\[]|return)\s*(/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*)")
_JS_TIMER = """
const { literals, texts, bound } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const isSlow = (find) => [1, 2, 3].every(() => {
  const before = process.cpuUsage();
  find();
  return process.cpuUsage(before).user > bound * 1e6;
});
console.log(JSON.stringify(literals.map((literal) => {
  const [, source, flags] = literal.match(/^\\/([^]*)\\/([a-z]*)$/);
  const expression = new RegExp(source, flags.includes("g") ? flags : flags + "g");
  return texts.find((text) => isSlow(() => [...text.matchAll(expression)]))?.slice(0, 20) ?? null;
})));
"""


def _slow_texts_of_scripts(literals: list[str]) -> list[str | None]:
    """For each expression in JavaScript, the beginning of a text that takes too long, if there is one."""
    given = json.dumps({"literals": literals, "texts": TEXTS, "bound": BOUND_S})
    done = subprocess.run(
        ["node", "-e", _JS_TIMER], input=given, capture_output=True, text=True, timeout=500, check=True
    )
    found: list[str | None] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js")
def test_expressions_of_the_page_search_in_linear_time() -> None:
    scripts = [file for file in sorted((ROOT / "minigpt4_serve").rglob("*.js")) if "vendor" not in file.parts]
    literals = [literal for file in scripts for literal in _JS_LITERAL.findall(file.read_text(encoding="utf-8"))]
    assert len(literals) >= 12
    *found, known = _slow_texts_of_scripts([*literals, "/(a.)+$/"])
    assert known is not None
    assert {literal: text for literal, text in zip(literals, found, strict=True) if text is not None} == {}


@pytest.mark.parametrize("pattern", [r"\s*x", r"a*b", r"\([^)]*\)", r"<p>[^/]*</p>", r"(\w+\.)+$"])
def test_quadratic_expressions_would_be_found(pattern: str) -> None:
    assert _slow_text(pattern, 0, "finditer") is not None
