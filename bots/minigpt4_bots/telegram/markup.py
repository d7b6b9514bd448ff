"""A model's Markdown as Telegram's HTML: always well-formed, nothing clickable, counted as Telegram counts.

Telegram's rules (Bot API, "Formatting options"): code holds no other entity and lies within none, so code within bold
or under a spoiler is shown as plain words. Emphasis ends on its line.
"""

import html
import re

from minigpt4_bots.core.markup import ZERO_WIDTH, Code, TextDelta, inert, scan, utf16_length

__all__ = ["telegram_html", "telegram_length", "telegram_plain"]

_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: they stand for code while emphasis is looked for
_EMPHASIS = re.compile(
    r"\*\*(?=\S)(?P<b>.+?)(?<=\S)\*\*(?!\*)"
    r"|(?<!\w)__(?=\S)(?P<b2>.+?)(?<=\S)__(?!\w)"
    r"|~~(?=\S)(?P<s>.+?)(?<=\S)~~"
    r"|(?<![\w*])\*(?=[^\s*])(?P<i>.+?)(?<=[^\s*])\*(?![\w*])"
    r"|(?<!\w)_(?=[^\s_])(?P<i2>.+?)(?<=[^\s_])_(?!\w)"
)
_MOST_MARKS = 200
"""In a line with more of them nothing is emphasised: looking for pairs would take too long."""


def telegram_html(text: str, *, spoiler: bool = False) -> str:
    """One message's Markdown, complete or still growing, as HTML for ``parse_mode="HTML"``.

    Args:
        text: the Markdown.
        spoiler: put all of it under a spoiler.
    """
    lines: list[str] = []
    for block in scan(text.replace(_OPEN, "").replace(_CLOSE, ""), hidden=spoiler):
        if isinstance(block, Code):
            lines.append(_code_block(block, hidden=spoiler))
        else:
            lines.append("".join(_piece(piece, is_start=not index) for index, piece in enumerate(block.pieces)))
    return "\n".join(lines)


def telegram_plain(text: str) -> str:
    """The same without any markup, for when Telegram refuses the HTML: addresses and mentions stay broken."""
    # Under a spoiler nothing is shown as code, so addresses are broken by characters that can't be seen.
    return _plain(telegram_html(text, spoiler=True))


def telegram_length(text: str, *, spoiler: bool = False) -> int:
    """UTF-16 units after parsing: what Telegram's limit of 4,096 means."""
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


def _piece(piece: TextDelta, *, is_start: bool) -> str:
    text = piece.text
    heading = None
    if is_start:
        heading = re.match(r"\s{0,3}#{1,6}\s+(?=\S)", text)
        if heading:
            text = text[heading.end() :].rstrip(" #")
        text = re.sub(r"^(\s*)[*+-]\s+(?=\S)", "\\1• ", text)
    shown = _inline(text, nested=piece.hidden or heading is not None)
    if heading:
        shown = f"<b>{shown}</b>"
    return f"<tg-spoiler>{shown}</tg-spoiler>" if piece.hidden and shown.strip() else shown


def _inline(text: str, *, nested: bool) -> str:
    """One line's HTML. ``nested``: it lies within another entity, so it can't hold code."""
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

    def emphasise(words: str, *, nested: bool) -> str:
        found = _EMPHASIS.search(words)
        if found is None:
            return fill(words, nested=nested)
        name = found.lastgroup or ""
        inner = emphasise(found[name], nested=True)
        before = fill(words[: found.start()], nested=nested)
        return f"{before}<{name[0]}>{inner}</{name[0]}>{emphasise(words[found.end() :], nested=nested)}"

    if sum(line.count(mark) for mark in "*_~") > _MOST_MARKS:
        return fill(line, nested=nested)
    return emphasise(line, nested=nested)


def _broken(address: str) -> str:
    """An address that Telegram won't make a link of."""
    return re.sub(r"([.:/@])", f"\\1{ZERO_WIDTH}", address)
