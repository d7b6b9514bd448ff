"""Makes a model's Markdown safe to show: deactivates links and mentions, closes spoilers and code blocks.

Pure functions over one message's text, complete or still growing. ``safe_markdown`` returns Discord's Markdown; other
renderers build on ``scan`` and ``inert``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = [
    "ZERO_WIDTH",
    "Code",
    "Line",
    "Segment",
    "fence_at",
    "inert",
    "safe_markdown",
    "scan",
    "spoiler_is_open",
    "utf16_length",
]

ZERO_WIDTH = "\u200b"
"""Zero-width space: invisible, and keeps chat programs from making text clickable."""

_BACKTICK_LOOKALIKE = "\u02cb"
"""Looks like a backtick but isn't markup."""

# Adjacent repetitions that match the same characters are possessive (such as *+): otherwise a failing match tries every
# way to divide the characters among them, in quadratic or cubic time.
_FENCE = re.compile(r" {0,3}(`{3,}+|~{3,}+)\s*+([\w+#.-]*+)[^\n`]*+$")
_CODE_OR_BARS = re.compile(r"(?<!`)(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)|(?P<bars>\|\|)")
_PATH = r"/[^\s<>`|]*[^\s<>`|.,;:!?'\")\]*_~]|/"
_LINK = re.compile(
    r"!?\[(?P<label>[^\[\]\n]*)\]\(\s*+<?(?P<target>[^\s()<>`]*+(?:\([^\s()<>`]*+\)[^\s()<>`]*+)*+)>?(?:\s++[^()\n]*+)?\)"
    r"|<?(?P<address>\b(?:[a-zA-Z][a-zA-Z0-9+.-]{0,30}+://|www\.)[^\s<>`|]*[^\s<>`|.,;:!?'\")\]*_~])>?"
    # Chat programs link bare domains in any script and case, and IP addresses. The lookbehind allows one attempt per
    # run of these characters, so that long runs take linear time.
    r"|(?<![\w.-])(?P<before>[-_.]*)(?P<domain>"
    r"(?:\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)|[^\W_](?:[\w-]*\.)+(?:xn--[a-zA-Z0-9-]+|[^\W\d_]{2,24})(?![-_]*[^\W_]))"
    rf"(?::\d{{1,5}}(?!\w))?(?P<path>{_PATH})?)"
)


@dataclass(frozen=True)
class Code:
    """A fenced block. ``closed`` is False while it is incomplete."""

    language: str
    text: str
    closed: bool = True


@dataclass(frozen=True)
class Segment:
    """A part of a line, inside or outside of a spoiler."""

    text: str
    hidden: bool


@dataclass(frozen=True)
class Line:
    """A line outside of fenced code."""

    segments: tuple[Segment, ...]


def scan(text: str, *, hidden: bool = False) -> Iterator[Code | Line]:
    """The fenced blocks and lines of a text, without its spoiler bars (``||``).

    Args:
        text: Markdown.
        hidden: put every line under a spoiler.
    """
    open_spoiler = False
    fence: str | None = None
    language = ""
    code: list[str] = []
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence is not None:
            if _closes(mark, fence):
                yield Code(language, "\n".join(code))
                fence = None
            else:
                code.append(line)
        elif mark:
            fence = mark[1]
            language = mark[2]
            code = []
        else:
            segments, open_spoiler = _split_at_bars(line, open_spoiler)
            yield Line(tuple(Segment(segment.text, hidden or segment.hidden) for segment in segments))
    if fence is not None:
        yield Code(language, "\n".join(code), closed=False)


def fence_at(text: str) -> str | None:
    """The fence and language that opened the code block in which the text ends; None outside of code."""
    fence: str | None = None
    opened = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence is None and mark:
            fence = mark[1]
            opened = mark[1] + mark[2]
        elif fence is not None and _closes(mark, fence):
            fence = None
    return opened if fence is not None else None


def _closes(mark: re.Match[str] | None, fence: str) -> bool:
    """Whether a line's match of ``_FENCE`` ends the block that ``fence`` opened."""
    return mark is not None and mark[1].startswith(fence) and not mark[2]


def spoiler_is_open(text: str) -> bool:
    """Whether the text ends within a spoiler that it opened."""
    is_open = False
    for block in scan(text):
        if isinstance(block, Line):
            # The last segment follows the last bars and may be empty.
            is_open = block.segments[-1].hidden
    return is_open


def safe_markdown(text: str, *, spoiler: bool = False) -> str:
    """Close code blocks and spoilers, and deactivate links and mentions.

    Args:
        text: one message, complete or still growing.
        spoiler: put all of it under one spoiler.
    """
    lines: list[str] = []
    open_spoiler = False
    for block in scan(text):
        if isinstance(block, Code):
            code = block.text.replace("```", f"`{ZERO_WIDTH}`{ZERO_WIDTH}`")
            lines.append(f"```{block.language}\n{code}\n```")
            continue
        line = ""
        for index, segment in enumerate(block.segments):
            if index and not spoiler:
                line += "||"
            line = _concatenate(line, inert(segment.text, _in_backticks, _inline_code, _without_code_marks))
            open_spoiler = segment.hidden
        lines.append(line.replace("||", f"|{ZERO_WIDTH}|") if spoiler else line)
    whole = "\n".join(lines)
    if spoiler:
        return f"||{whole}||" if whole.strip() else whole
    return f"{whole}||" if open_spoiler else whole


def _without_code_marks(words: str) -> str:
    """Replace backticks, which platforms pair across lines, and separate a trailing backslash from what follows."""
    words = words.replace("`", _BACKTICK_LOOKALIKE)
    return f"{words}{ZERO_WIDTH}" if words.endswith("\\") else words


def _inline_code(ticks: str, code: str) -> str:
    """Inline code in a form that all platforms parse the same way."""
    if len(ticks) == 2 and "``" not in code and not (code.startswith("`") or code.endswith("`")):
        return f"``{code}``"
    return f"`{code.replace('`', _BACKTICK_LOOKALIKE)}`"


def inert(
    text: str,
    show_address: Callable[[str], str],
    show_code: Callable[[str, str], str],
    show_words: Callable[[str], str] = lambda words: words,
) -> str:
    """Deactivate links and mentions in one line.

    Args:
        text: Markdown without fenced code.
        show_address: renders the address of a link.
        show_code: renders inline code, given its backticks and its text.
        show_words: renders all other text, with mentions already deactivated.
    """
    shown = ""
    position = 0
    for span in _CODE_OR_BARS.finditer(text):
        if not span["ticks"]:
            continue
        shown = _concatenate(shown, _inert_words(text[position : span.start()], show_address, show_words))
        width = len(span["ticks"])
        shown = _concatenate(shown, show_code(span["ticks"], span[0][width:-width]))
        position = span.end()
    return _concatenate(shown, _inert_words(text[position:], show_address, show_words))


def utf16_length(text: str) -> int:
    """UTF-16 code units, by which the platforms count length."""
    return sum(2 if ord(character) > 0xFFFF else 1 for character in text)


def _inert_words(text: str, show_address: Callable[[str], str], show_words: Callable[[str], str]) -> str:
    shown = ""
    position = 0
    for link in _LINK.finditer(text):
        start = link.start() if link["before"] is None else link.end("before")
        shown += show_words(_without_mentions(text[position:start]))
        if link["label"] is not None:
            shown += _inert_words(link["label"], show_address, show_words)
            if link["target"] and link["target"] != link["label"]:
                shown += f" ({show_address(link['target'])})"
        elif link["domain"] is not None and _is_unlikely_link(link, text[start - 1 : start]):
            shown += show_words(link["domain"].replace(".", f".{ZERO_WIDTH}"))
        else:
            shown = _concatenate(shown, show_address(link["address"] or link["domain"]))
        position = link.end()
    return shown + show_words(_without_mentions(text[position:]))


def _is_unlikely_link(domain_match: re.Match[str], preceding: str) -> bool:
    """Whether a bare domain is probably two sentences without a space between, or part of a path or mail address."""
    if domain_match["path"]:
        return False
    ending = domain_match["domain"].partition(":")[0].rpartition(".")[2]
    looks_like_top_level_domain = ending.isascii() and (ending.islower() or ending.isupper() or ending.isdigit())
    return preceding in ("@", "/") or not looks_like_top_level_domain


def _concatenate(before: str, after: str) -> str:
    """Concatenate, keeping adjacent inline code apart."""
    return f"{before}{ZERO_WIDTH}{after}" if before.endswith("`") and after.startswith("`") else before + after


def _without_mentions(text: str) -> str:
    """Break mentions, custom emojis, timestamps and commands with zero-width spaces."""
    text = text.replace("@", f"@{ZERO_WIDTH}")
    text = re.sub(r"<(?=[@#/:]|a:|t:|id:)", f"<{ZERO_WIDTH}", text)
    return re.sub(r"(?<![\w/<])/(?=[a-zA-Z])", f"/{ZERO_WIDTH}", text)


def _in_backticks(address: str) -> str:
    return f"`{address}`"


def _split_at_bars(line: str, hidden: bool) -> tuple[list[Segment], bool]:
    """The line's segments between spoiler bars, and whether a spoiler is open at its end."""
    segments: list[Segment] = []
    begin = 0
    bars = [found for found in _CODE_OR_BARS.finditer(line) if found["bars"]]
    for index, found in enumerate(bars):
        after = line[found.end() : found.end() + 1]
        # Before a space, as in "a || b", bars open a spoiler only if more bars follow on the line; likewise at the end
        # of the line, because what follows the bars in a growing text isn't known yet.
        is_spoiler_bar = hidden or index + 1 < len(bars) or (after != "" and not after.isspace())
        if not is_spoiler_bar:
            continue
        segments.append(Segment(line[begin : found.start()], hidden))
        hidden = not hidden
        begin = found.end()
    segments.append(Segment(line[begin:], hidden))
    return segments, hidden
