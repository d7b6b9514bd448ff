"""Reports words and constructs that this project doesn't use; 1 if there are any.

``python -m tools.lint_words [PATH …]`` reads Python and Markdown files; without paths, all files of the repository.
docs/glossary.md has the words to use instead. A line with the comment ``words: allow`` is left out, which is meant for
quotations and for words of other systems' APIs.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "lint_markdown", "lint_python", "main"]

ROOT = Path(__file__).parent.parent

EXEMPT = (
    "CHANGELOG.md",  # history
    "docs/glossary.md",  # lists the words
    "tests/golden/",  # recorded from the original code
    "tests/tools/test_lint_words.py",
    "tools/lint_words.py",
    "tools/tiny/wordings.py",  # sentences that people ask the embedded model
)

ALLOW = "words: allow"

PHRASES = {
    r"whoever|whomever": "anyone who",
    r"nobody": "no one, or the passive",
    r"somebody": "someone, or a noun such as user or caller",
    r"anybody": "anyone",
    r"anew": "again",
    r"shall": "must, should or will",
    r"told": "given, reported or sent",
    r"hear|hears|heard|hearing": "receive, get",
    r"left over|strays": "unexpected (keys), remaining",
    r"forgettable": "truncation points",
    r"neutrali[sz]e[sd]?|neutrali[sz]ing": "escape",
    r"(?:full|same|whole) house|house style|house rules?": "the words for what is meant",
    r"place in the line|waiting line|whole line waits": "queue, position in the queue",
    r"other hands": "alternative renderer",
    r"it waves through": "it accepts",
}
"""Regular expression → what to write instead. Whole words in any case, in names, comments, strings and prose."""

OPENINGS = r"(?:Knows|Hears|Tells|Forgets|Wants|Looks at|Remembers)\b"
"""Code does none of this, and as the first word of a sentence in a docstring it says that code does."""

BRITISH = {
    r"(normal|token|quant|initial|recogn|organ|optim|serial|summar|minim|maxim|util|general|special|parallel)"
    r"is(?=e|ed|es|er|ers|ing|ation|ations|able)": r"\1iz",
    r"(synchron|author|visual|local|categor|random|stabil|final|priorit|real|emphas)"
    r"is(?=e[sd]?\b|ing\b|ation\b)": r"\1iz",
    r"analyse": "analyze",
    r"colour": "color",
    r"favour": "favor",
    r"behaviour": "behavior",
    r"honour": "honor",
    r"neighbour": "neighbor",
    r"flavour": "flavor",
    r"centre": "center",
    r"grey": "gray",
    r"licence": "license",
    r"cancell(?=ed|ing)": "cancel",
    r"labell(?=ed|ing)": "label",
    r"modell(?=ed|ing)": "model",
    r"travell(?=ed|ing)": "travel",
    r"fulfil\b": "fulfill",
    r"artefact": "artifact",
    r"defence": "defense",
    r"learnt": "learned",
    r"spelt": "spelled",
    r"whilst": "while",
    r"amongst": "among",
}
"""British spelling → American."""

ALLOWED_IN_STRINGS = ("colour", "grey", r"cancell(?=ed|ing)")
"""Questions to the model and statuses of APIs have these; names of the standard library have ``cancelled``."""

NAMES = {
    "_take_in": "_drain_inbox",
    "_hear": "_next_output",
    "_tell": "_flush_outputs",
    "_spoken": "response formatter",
    "as_ours": "to_minigpt4_error",
    "in_words": "describe_error",
    "check_picture": "validate_image",
    "check_room": "check_capacity",
    "decode_picture": "decode_image",
    "fit_positions": "interpolate_pos_embed",
    "image_part": "image_url_part",
    "read_data_url": "parse_data_url",
    "Asker": "Requester",
    "Collector": "PromptBuilder",
    "ConversationFormat": "ConversationTemplate",
    "CutShort": "StreamInterrupted",
    "Deeds": "CommandHandlers",
    "Ledger": "QuotaStore",
    "Outlet": "MessageTarget",
    "PictureRouter": "ImageAffinityRouter",
    "ShownPicture": "preview",
    "Sight": "RequestLogMiddleware",
    "Standing": "QuotaStatus",
    "Urgency": "Priority",
}
"""Names of an earlier dialect → today's."""

PUBLIC_NAMES = ("colour_phrases",)
"""Documented names that users import."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing to change, and where it is."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def _prose(text: str, *, is_data: bool = False) -> Iterator[tuple[int, str]]:
    """Offset and message of each word not to be used; ``is_data`` for strings that aren't docstrings."""
    for pattern, instead in PHRASES.items():
        spaced = pattern.replace(" ", r"\s+")
        for match in re.finditer(rf"\b(?:{spaced})\b", text, re.IGNORECASE):
            yield match.start(), f"{' '.join(match[0].split())!r}: write {instead}"
    for pattern, american in BRITISH.items():
        if is_data and pattern in ALLOWED_IN_STRINGS:
            continue
        for match in re.finditer(rf"\b\w*?{pattern}\w*", text, re.IGNORECASE):
            yield (
                match.start(),
                f"{match[0]!r}: American English spells it {re.sub(pattern, american, match[0].lower())!r}",
            )


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer(rf"(?:\A|(?<=\. )|(?<=\n))\s*({OPENINGS})", text):
        yield match.start(1), f"{match[1]!r}: say what the code does"


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset)


def lint_markdown(path: str, text: str) -> list[Finding]:
    """Findings in the text of a Markdown file."""
    lines = text.splitlines()
    return [
        Finding(path, line + 1, message)
        for offset, message in _prose(text)
        if ALLOW not in lines[line := _line(text, offset)]
    ]


def lint_python(path: str, text: str) -> list[Finding]:
    """Findings in the source of a Python file."""
    tree = ast.parse(text)
    docstrings = dict(_docstrings(tree))
    lines = text.splitlines()
    found = [
        Finding(path, line, message)
        for line, message in (*_in_tokens(text, docstrings), *_in_docstrings(docstrings), *_in_syntax(tree))
        if ALLOW not in lines[line - 1]
    ]
    return sorted(set(found))


def _in_tokens(text: str, docstrings: dict[int, str]) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first = token.start[0]
        kind = tokenize.tok_name[token.type]
        if kind == "NAME":
            if token.string in NAMES:
                yield first, f"the name {token.string!r}: it is {NAMES[token.string]!r}"
            if token.string in PUBLIC_NAMES:
                continue
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_+", " ", token.string)
            for _, message in _prose(words, is_data="cancelled" in words.lower()):
                yield first, f"the name {token.string!r}: {message}"
        elif kind in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            is_data = kind != "COMMENT" and first not in docstrings
            for offset, message in _prose(token.string, is_data=is_data):
                yield first + _line(token.string, offset), message


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each string that stands alone as a statement: docstrings, those of attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def _in_docstrings(docstrings: dict[int, str]) -> Iterator[tuple[int, str]]:
    for line, text in docstrings.items():
        first = text.strip().split("\n")[0]
        if first.rstrip().endswith("?"):
            yield line, "a docstring states what is returned or done; this one asks"
        for offset, message in _sentences(text):
            yield line + _line(text, offset), message


def _in_syntax(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                if name.name == "Sequence" and name.asname not in (None, "Sequence"):
                    yield node.lineno, f"Sequence imported as {name.asname!r}: write Sequence[…]"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.endswith("_of"):
                yield node.lineno, f"the function {node.name!r}: begin with a verb, or make it a property"
        elif isinstance(node, ast.Assign):
            if _saves_lines(node):
                yield node.lineno, "several values in one assignment: one line each"
        elif isinstance(node, ast.AugAssign):
            if _is_boolean(node.value):
                yield node.lineno, "arithmetic with a boolean: use if"
        elif (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Add | ast.Sub | ast.Mult)
            and (_is_boolean(node.left) or _is_boolean(node.right))
        ):
            yield node.lineno, "arithmetic with a boolean: use if"


def _saves_lines(node: ast.Assign) -> bool:
    """Whether ``a, b = x, y`` could be two lines: not for swaps, nor where a target is read on the right."""
    (target, *_), value = node.targets, node.value
    if not isinstance(target, ast.Tuple) or not isinstance(value, ast.Tuple) or len(target.elts) != len(value.elts):
        return False
    if any(isinstance(each, ast.Starred) for each in (*target.elts, *value.elts)):
        return False
    targets = {ast.unparse(each) for each in target.elts}
    return not any(ast.unparse(each) in targets for each in ast.walk(value) if isinstance(each, ast.expr))


def _is_boolean(node: ast.expr) -> bool:
    """Whether an expression is certainly a boolean; an ordinary comparison may be a tensor."""
    if isinstance(node, ast.Compare):
        return all(isinstance(each, ast.In | ast.NotIn | ast.Is | ast.IsNot) for each in node.ops)
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _files(paths: Iterable[str]) -> list[str]:
    """Python and Markdown files of the repository, those not yet added to Git included."""
    listed = subprocess.run(  # noqa: S603 - paths of the developer's command line
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],  # noqa: S607 - of a checkout
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return sorted({name for name in listed if name.endswith((".py", ".md")) and not name.startswith(EXEMPT)})


def main(paths: Iterable[str] = ()) -> int:
    """Print what is found in the given files and folders; 1 if there is anything."""
    findings: list[Finding] = []
    for name in _files(paths):
        if not (ROOT / name).exists():  # deleted, but not yet committed
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        findings += lint_python(name, text) if name.endswith(".py") else lint_markdown(name, text)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
