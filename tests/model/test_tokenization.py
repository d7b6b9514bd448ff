import io
import json
from pathlib import Path

import pytest
import sentencepiece
from other_set import vocabulary

from minigpt4_serve.model import MiniGPT4Tokenizer


@pytest.fixture(params=["vicuna-tiny", "llama2-tiny"])
def tokenizer(request: pytest.FixtureRequest, golden: Path) -> MiniGPT4Tokenizer:
    return MiniGPT4Tokenizer(str(golden / "llm" / request.param / "tokenizer.model"))


def test_ids_and_texts_equal_the_originals(tokenizer: MiniGPT4Tokenizer, golden: Path) -> None:
    expected = json.loads((golden / "v1_vicuna" / "expected.json").read_text())
    assert len(expected["tokenizer_table"]) == 30
    for row in expected["tokenizer_table"]:
        assert tokenizer.encode_segment(row["text"]) == row["ids"], row["text"]
        assert tokenizer(row["text"])["input_ids"] == row["ids_with_special"], row["text"]
    for row in expected["decode_table"]:
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["skip_special"]


def test_special_ids_come_from_the_vocabulary(tokenizer: MiniGPT4Tokenizer) -> None:
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == "$$"


def test_vocabularies_of_other_sizes_work_without_padding_piece(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(vocabulary(330))
    plain = MiniGPT4Tokenizer(str(tmp_path / "tokenizer.model"))
    assert (len(plain), plain.vocab_size, plain.pad_token_id) == (330, 330, 0)
    assert plain.decode_ids([0, *plain.encode_segment("red one"), 2]) == "red one"
    (tmp_path / "tokenizer.model").write_bytes(vocabulary(330, "$$"))
    assert MiniGPT4Tokenizer(str(tmp_path / "tokenizer.model")).pad_token_id == 3


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: MiniGPT4Tokenizer) -> None:
    assert tokenizer.decode_ids([tokenizer.vocab_size, 2]) == ""


def test_folder_round_trip(tokenizer: MiniGPT4Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = MiniGPT4Tokenizer.from_pretrained(tmp_path)
    text = "<s>[INST] grün 🙂 </s>"
    assert again.encode_segment(text) == tokenizer.encode_segment(text)
    assert again.pad_token_id == tokenizer.pad_token_id


def test_a_file_that_is_no_vocabulary_is_refused(golden: Path) -> None:
    with pytest.raises(RuntimeError, match=r"could not parse ModelProto from .*MANIFEST\.json"):
        MiniGPT4Tokenizer(str(golden / "MANIFEST.json"))


def test_a_vocabulary_with_other_special_ids_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["What is it?"] * 3),
        model_writer=other,
        vocab_size=20,
        model_type="bpe",
        pad_id=0,  # as T5 numbers them
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    file.write_bytes(other.getvalue())
    with pytest.raises(ValueError, match=r"tokenizer\.model is not a LLaMA vocabulary: <unk>, <s>, </s> must have"):
        MiniGPT4Tokenizer(str(file))
