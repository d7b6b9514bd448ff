"""Renders a model's Markdown as Telegram's HTML: always well-formed, without active links and mentions.

By Telegram's rules (Bot API, "Formatting options") code can't contain or be within other entities, so code within bold
text or a spoiler is rendered as plain text. Emphasis ends on its line.
"""

import html
import re

from minigpt4_bots.core.markup import ZERO_WIDTH, Code, Segment, inert, scan, utf16_length

__all__ = ["telegram_html", "telegram_length", "telegram_plain"]

_OPEN = "\ue000"
_CLOSE = "\ue001"  # private use: placeholders for code while emphasis is parsed
_EMPHASIS = re.compile(
    r"\*\*(?=\S)(?P<b>.+?)(?<=\S)\*\*(?!\*)"
    r"|(?<!\w)__(?=\S)(?P<b2>.+?)(?<=\S)__(?!\w)"
    r"|~~(?=\S)(?P<s>.+?)(?<=\S)~~"
    r"|(?<![\w*])\*(?=[^\s*])(?P<i>.+?)(?<=[^\s*])\*(?![\w*])"
    r"|(?<!\w)_(?=[^\s_])(?P<i2>.+?)(?<=[^\s_])_(?!\w)"
)
_MOST_MARKS = 200
"""Lines with more marks get no emphasis, as pairing them takes quadratic time."""


def telegram_html(text: str, *, spoiler: bool = False) -> str:
    """Render one message, complete or still growing, for ``parse_mode="HTML"``.

    Args:
        text: the Markdown.
        spoiler: put all of it under a spoiler.
    """
    lines: list[str] = []
    for block in scan(text.replace(_OPEN, "").replace(_CLOSE, ""), hidden=spoiler):
        if isinstance(block, Code):
            lines.append(_code_block(block, hidden=spoiler))
        else:
            lines.append("".join(_segment(segment, is_start=not index) for index, segment in enumerate(block.segments)))
    return "\n".join(lines)


def telegram_plain(text: str) -> str:
    """The text without markup, for when Telegram refuses the HTML. Addresses and mentions stay inactive."""
    # Within a spoiler nothing is rendered as code, so invisible characters break the addresses.
    return _plain(telegram_html(text, spoiler=True))


def telegram_length(text: str, *, spoiler: bool = False) -> int:
    """UTF-16 units after parsing, which Telegram limits to 4,096."""
    return utf16_length(_plain(telegram_html(text, spoiler=spoiler)))


def _plain(rendered: str) -> str:
    return html.unescape(re.sub(r"<[^<>]*>", "", rendered))


def _code_block(block: Code, *, hidden: bool) -> str:
    code = html.escape(block.text, quote=False)
    if hidden:
        return f"<tg-spoiler>{code}</tg-spoiler>" if code.strip() else code
    if block.language:
        return f'<pre><code class="language-{html.escape(block.language)}">{code}</code></pre>'
    return f"<pre>{code}</pre>"


def _segment(segment: Segment, *, is_start: bool) -> str:
    text = segment.text
    heading = None
    if is_start:
        heading = re.match(r"\s{0,3}#{1,6}\s+(?=\S)", text)
        if heading:
            text = text[heading.end() :].rstrip(" #")
        text = re.sub(r"^(\s*)[*+-]\s+(?=\S)", "\\1• ", text)
    shown = _inline(text, nested=segment.hidden or heading is not None)
    if heading:
        shown = f"<b>{shown}</b>"
    return f"<tg-spoiler>{shown}</tg-spoiler>" if segment.hidden and shown.strip() else shown


def _inline(text: str, *, nested: bool) -> str:
    """Render one line. ``nested`` is for text within another entity, which can't contain code."""
    held: list[tuple[str, bool]] = []

    def hold(code: str, *, is_address: bool) -> str:
        held.append((code, is_address))
        return f"{_OPEN}{len(held) - 1}{_CLOSE}"

    line = inert(
        text,
        lambda address: hold(address, is_address=True),
        lambda _, code: hold(code, is_address=False),
        lambda words: html.escape(words, quote=False),
    )

    def fill(words: str, *, nested: bool) -> str:
        def show(found: re.Match[str]) -> str:
            code, is_address = held[int(found[1])]
            if not nested:
                return f"<code>{html.escape(code, quote=False)}</code>"
            return html.escape(_broken(code) if is_address else code, quote=False)

        return re.sub(f"{_OPEN}(\\d+){_CLOSE}", show, words)

    def emphasize(words: str, *, nested: bool) -> str:
        found = _EMPHASIS.search(words)
        if found is None:
            return fill(words, nested=nested)
        name = found.lastgroup or ""
        inner = emphasize(found[name], nested=True)
        before = fill(words[: found.start()], nested=nested)
        return f"{before}<{name[0]}>{inner}</{name[0]}>{emphasize(words[found.end() :], nested=nested)}"

    if sum(line.count(mark) for mark in "*_~") > _MOST_MARKS:
        return fill(line, nested=nested)
    return emphasize(line, nested=nested)


def _broken(address: str) -> str:
    """An address that Telegram doesn't turn into a link."""
    return re.sub(r"([.:/@])", f"\\1{ZERO_WIDTH}", address)
