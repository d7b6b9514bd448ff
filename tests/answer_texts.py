"""Random answers as models write them, for property tests: code, spoilers, links, mentions, wide characters."""

import itertools

from hypothesis import strategies as st
from minigpt4_bots.core.markup import safe_markdown, utf16_length
from minigpt4_bots.core.pages import Pages

WORDS = st.sampled_from(
    ["cat", "a red circle.", "\n\n", "\n", "```\n", "\n```\n", "code()", "||", "**bold**", "`x`", "😀", "图片。",
     "@everyone", "https://evil.example/x", "[a](http://b.example)", " ", "supercalifragilistic" * 5, "<@1>", "~~~\n"]
)  # fmt: skip
TEXTS = st.lists(WORDS, max_size=80).map("".join)
TICKS = st.lists(WORDS | st.sampled_from(["`", "``", "\\", "`@here`"]), max_size=40).map("".join)


def split_pages(text: str, limit: int, cuts: list[int] | None = None) -> list[str]:
    pages = Pages(limit, lambda page: utf16_length(safe_markdown(page)))
    for begin, end in itertools.pairwise([0, *(cuts or []), len(text)]):
        pages.feed(text[begin:end])
    return [pages[index] for index in range(len(pages))]
