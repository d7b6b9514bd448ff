"""Pages of random texts: complete, within the limit, with closed code and spoilers."""

import random
import re

import pytest
from answer_texts import TEXTS, split_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from minigpt4_bots.core.markup import fence_at, safe_markdown, spoiler_is_open, utf16_length
from minigpt4_bots.core.pages import Pages


def essence(text: str) -> str:
    """The text that splitting must keep: all but whitespace, fences and spoiler bars."""
    return re.sub(r"[\s`~|]", "", text)


@given(TEXTS, st.integers(64, 400), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_pages_keep_all_text_within_the_limit(text: str, limit: int, chance: random.Random) -> None:
    cuts = sorted(chance.randint(0, len(text)) for _ in range(10))
    pages = split_pages(text, limit, cuts)
    assert all(utf16_length(safe_markdown(page)) <= limit for page in pages)
    assert "".join(map(essence, pages)) == essence(text)


@given(TEXTS, st.integers(64, 400))
@settings(max_examples=100, deadline=None)
def test_settled_pages_close_their_code_and_spoilers(text: str, limit: int) -> None:
    for page in split_pages(text, limit)[:-1]:
        assert fence_at(page) is None
        assert not spoiler_is_open(page)


def test_a_settled_page_never_changes() -> None:
    pages = Pages(100, len)
    text = "One sentence is here. " * 40
    seen: list[str] = []
    for character in text:
        pages.feed(character)
        assert pages.settled[: len(seen)] == seen
        seen = list(pages.settled)
    assert len(seen) >= 7


@pytest.mark.parametrize(
    ("text", "first_ends"),
    [
        ("First part. " * 8 + "\n\n" + "Second part. " * 10, "First part."),
        ("A sentence here. " * 20, "here."),
        ("no sentence end just words " * 20, ""),
        ("这是一句话。" * 40, "。"),
        ("Text before the code, long enough to fill half.\n" * 2 + "```py\n" + "x = 1\n" * 40 + "```", "half."),
    ],
)
def test_pages_end_where_a_reader_would_end_them(text: str, first_ends: str) -> None:
    first = split_pages(text, 150)[0]
    assert first.endswith(first_ends)
    assert 50 <= len(first) <= 150


def test_code_is_closed_and_opened_again_with_its_language() -> None:
    pages = split_pages("```python\n" + "print('hello')\n" * 40 + "```\nThat's all.", 200)
    assert len(pages) > 2
    assert all(page.startswith("```python\n") and page.endswith("\n```") for page in pages[:-1])
    assert pages[-1].endswith("That's all.")


def test_a_spoiler_goes_on_over_pages() -> None:
    pages = split_pages("||" + "The butler did it. " * 20 + "|| The end.", 150)
    assert len(pages) > 2
    assert all(page.startswith("||") and page.endswith("||") for page in pages[:-1])


@pytest.mark.parametrize("limit", range(90, 112))
def test_what_is_seen_as_one_character_is_not_cut(limit: int) -> None:
    family = "👨‍👩‍👧‍👦"
    pages = split_pages(family * 30, limit)
    assert len(pages) > 2
    for page in pages:
        assert page.startswith("👨")
        assert page.endswith("👦")
