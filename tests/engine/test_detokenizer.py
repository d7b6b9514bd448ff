from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4_serve.engine.detokenizer import Detokenizer
from minigpt4_serve.model import MiniGPT4Tokenizer

TOKENIZER = MiniGPT4Tokenizer(
    str(Path(__file__).parents[1] / "golden" / "llm" / "vicuna-tiny" / "tokenizer.model"),
)
WORDS = [i for i in range(TOKENIZER.vocab_size) if len(TOKENIZER.sentencepiece.id_to_piece(i)) <= 3]
BYTES = {text: TOKENIZER.sentencepiece.piece_to_id(f"<0x{ord(text):02X}>") for text in map(chr, range(256))}


def characters(ids: list[int]) -> str:
    """A simulated vocabulary in which each id is a character."""
    return "".join(map(chr, ids))


def push_all(detokenizer: Detokenizer, ids: list[int], chunk: int = 1) -> list[str]:
    parts = [ids[i : i + chunk] for i in range(0, len(ids), chunk)]
    return [detokenizer.push(part, last=i == len(parts) - 1) for i, part in enumerate(parts)]


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first; of several, before the one that begins first."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size + 2), max_size=30), chunk=st.integers(1, 4))
def test_the_parts_make_up_the_whole_text(ids: list[int], chunk: int) -> None:
    assert "".join(push_all(Detokenizer(TOKENIZER.decode_ids), ids, chunk)) == TOKENIZER.decode_ids(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aé€😀 ñ", max_size=12))
def test_half_a_character_is_never_output(text: str) -> None:
    ids = [BYTES[chr(byte)] for byte in text.encode()]
    pieces = push_all(Detokenizer(TOKENIZER.decode_ids), ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == TOKENIZER.decode_ids(ids)


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="ab#", max_size=20),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3),
    chunk=st.integers(1, 5),
    min_tokens=st.integers(0, 25),
)
def test_stop_strings_count_from_the_least_length_on(text: str, stops: list[str], chunk: int, min_tokens: int) -> None:
    detokenizer = Detokenizer(characters, stops, min_tokens=min_tokens)
    free = max(0, min_tokens - 1)
    shown = "".join(push_all(detokenizer, list(map(ord, text)), chunk))
    assert shown == text[:free] + cut(text[free:], stops)
    if chunk == 1:
        assert detokenizer.num_shown == len(shown), "one character for each id"


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "c"], ["###"], 2),
        (["ab", "##", "#"], ["###"], 1),
        (["ab", "#", "##"], ["###"], 1),
        (["ab", " ###"], ["###"], 1),
        (["ab", "c###"], ["###"], 2),
        (["###"], ["###"], 0),
        (["ab", "", "##", "c"], ["###"], 4),
        (["ab", "", "###"], ["###"], 2),
        (["ab#", "##"], ["###"], 1),
    ],
)
def test_ids_of_a_stop_string_are_not_shown(pieces: list[str], stops: list[str], shown: int) -> None:
    detokenizer = Detokenizer(lambda ids: "".join(pieces[i] for i in ids), stops)
    push_all(detokenizer, list(range(len(pieces))))
    assert detokenizer.num_shown == shown


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="ab#", max_size=20),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3),
    chunk=st.integers(1, 5),
)
def test_no_part_of_a_stop_string_is_output(text: str, stops: list[str], chunk: int) -> None:
    detokenizer = Detokenizer(characters, stops)
    shown = ""
    expected = cut(text, stops)
    for piece in push_all(detokenizer, [ord(c) for c in text], chunk):
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected
    assert detokenizer.stopped == (cut(text, stops) != text)
    if detokenizer.stopped:
        assert detokenizer.push([ord("a")], last=True) == ""


@pytest.mark.parametrize(
    ("decode", "pushes", "stops", "shown"),
    [
        (characters, ["ab#", "#", "#", "c"], ["###"], ["ab", "", "", ""]),
        (characters, ["ab#", "#", "c"], ["###"], ["ab", "", "##c"]),
        (characters, ["x##"], ["###"], ["x##"]),  # the end: it never became a stop string
        (characters, ["", "a"], [], ["", "a"]),
    ],
)
def test_possible_stop_strings_are_held_back(
    decode: Callable[[list[int]], str], pushes: list[str], stops: list[str], shown: list[str]
) -> None:
    detokenizer = Detokenizer(decode, stops)
    pieces = [detokenizer.push([ord(c) for c in text], last=i == len(pushes) - 1) for i, text in enumerate(pushes)]
    assert pieces == shown


def test_a_space_after_a_special_token_is_kept() -> None:
    first, second = TOKENIZER.encode_segment("red circle")[:2]
    ids = [first, TOKENIZER.unk_token_id, second]
    assert "".join(push_all(Detokenizer(TOKENIZER.decode_ids), ids)) == TOKENIZER.decode_ids(ids)
