"""Splits a growing text into messages of limited length, at the ends of paragraphs, code blocks or sentences."""

import re
from collections.abc import Callable

from minigpt4_bots.core.markup import fence_at, spoiler_is_open

__all__ = ["Pages"]


class Pages:
    """A growing Markdown text as pages. A settled page never changes.

    ``measure`` returns a page's length as the platform counts it after rendering.
    """

    def __init__(self, limit: int, measure: Callable[[str], int]) -> None:
        assert limit >= 64, "a page must hold a sentence"
        self._limit = limit
        self._measure = measure
        self.settled: list[str] = []
        self.open = ""
        self._certain = 0
        """The open page fits while it has at most this many characters, so that not every delta is measured."""

    def feed(self, text: str) -> None:
        """Append to the text."""
        self.open += text
        while len(self.open) > self._certain:
            length = self._measure(self.open)
            if length <= self._limit:
                # A character renders to at most four units, and may change the rendering before it slightly.
                self._certain = len(self.open) + max(0, (self._limit - length - 64) // 4)
                return
            page, self.open = self._cut(self.open)
            self.settled.append(page)
            self._certain = 0

    def __len__(self) -> int:
        return len(self.settled) + 1

    def __getitem__(self, index: int) -> str:
        return self.open if index == len(self.settled) else self.settled[index]

    def _cut(self, text: str) -> tuple[str, str]:
        most = min(len(text) - 1, self._limit)
        while True:
            cut = _best_split(text, most)
            page, rest = _close(text, cut)
            excess = self._measure(page) - self._limit
            # A rest as long as the text (an empty code block that is reopened) would loop forever.
            if (excess <= 0 and len(rest) < len(text)) or most <= 1:
                return page, rest
            # Proportionally, since rendering may lengthen the text.
            most = max(1, min(cut - 1, cut * self._limit // (self._limit + max(0, excess))))


_BLOCK = re.compile(r"\n\s*\n|\n(?= {0,3}(?:```|~~~))|(?<=```)\n")
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]*_]*\s+|[。！？；][”’）」』]*|\n")
_SPACE = re.compile(r"\s+|[，、：]")


def _best_split(text: str, most: int) -> int:
    """Where to split within ``most`` characters: the last boundary of the best kind in the second half."""
    least = max(1, most // 2)
    window = text[:most]
    for boundary in (_BLOCK, _SENTENCE, _SPACE):
        ends = [found.end() for found in boundary.finditer(window) if found.end() >= least]
        if boundary is _BLOCK:
            ends = [end for end in ends if fence_at(window[:end].rstrip("\n")) is None]
        if boundary is _SENTENCE:
            # Within code only line ends count.
            ends = [end for end in ends if window[end - 1] == "\n" or fence_at(window[:end]) is None]
        if ends:
            return ends[-1]
    while most > least and not _may_split(text, most):
        most -= 1
    return most


def _may_split(text: str, at: int) -> bool:
    """Whether a split keeps visible characters (joiners, variation selectors, skin tones, combining marks, flags) and
    Markdown marks whole.
    """
    joining = re.compile("[\u200d\ufe0e\ufe0f\u0300-\u036f\U0001f3fb-\U0001f3ff\U0001f1e6-\U0001f1ff]")
    mark = text[at] == text[at - 1] and text[at] in "`|~*_"
    return not (mark or joining.match(text[at]) or text[at - 1] == "\u200d")


def _close(text: str, cut: int) -> tuple[str, str]:
    """The page up to the cut, closing its code and spoiler, and the rest, reopening them."""
    line = text.rfind("\n", 0, cut) + 1
    # An apparent fence in the last line is uncertain, as the line is incomplete.
    is_beginning = fence_at(text[:line]) is None and fence_at(text[:cut]) is not None
    if is_beginning and text[:line].strip():
        cut = line
        is_beginning = False
    page = text[:cut]
    rest = text[cut:]
    if not is_beginning and (fence := fence_at(page)) is not None:
        mark = fence[: len(fence) - len(fence.lstrip(fence[0]))]
        return f"{page.rstrip()}\n{mark}", f"{fence}\n{rest}"
    if spoiler_is_open(page):
        return f"{page.rstrip()}||", f"||{rest.lstrip()}"
    return page.rstrip(), rest.lstrip("\n ")
