from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import draw
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from minigpt4_serve.errors import ContextLengthExceeded
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor, Turn
from minigpt4_serve.prompt.variants import VARIANTS

Pair = tuple[MiniGPT4ForConditionalGeneration, MiniGPT4Processor]


def _chat(*colors: str, question: str = "What is it?") -> list[dict[str, Any]]:
    images = [{"type": "image", "image": draw(color)} for color in colors]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def test_save_and_load_round_trip_exactly(small_model: Pair, tmp_path: Path) -> None:
    model, processor = small_model
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is MiniGPT4ForConditionalGeneration
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    old = model.state_dict()
    new = again.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    reader = AutoProcessor.from_pretrained(tmp_path)
    assert type(reader) is MiniGPT4Processor
    first = processor.apply_chat_template(_chat("red", "blue"), tokenize=True)
    second = reader.apply_chat_template(_chat("red", "blue"), tokenize=True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    assert torch.equal(
        again.generate(**second, max_new_tokens=8, do_sample=False),
        model.generate(**first, max_new_tokens=8, do_sample=False),
    )
    assert again.vision_model.post_layernorm.eps == 1e-5


def test_padded_batches_equal_single_rows(small_model: Pair) -> None:
    model, processor = small_model
    chats = [_chat("red"), _chat("green", "blue", question="Compare the two pictures, please."), _chat(question="Hi")]
    batch = processor.apply_chat_template(chats, tokenize=True)
    together = model.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=511)
    for row, chat in zip(together, chats, strict=True):
        alone = model.generate(
            **processor.apply_chat_template(chat, tokenize=True), max_new_tokens=12, do_sample=False, eos_token_id=511
        )[0]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_the_image_changes_the_logits(small_model: Pair) -> None:
    model, processor = small_model
    red, blue = (processor.apply_chat_template(_chat(color), tokenize=True) for color in ("red", "blue"))
    with torch.no_grad():
        assert not torch.allclose(model(**red).logits[0, -1], model(**blue).logits[0, -1], atol=1e-3)


def test_image_tokens_must_match_the_images(small_model: Pair) -> None:
    model, processor = small_model
    inputs = processor.apply_chat_template(_chat("red", "blue"), tokenize=True)
    with pytest.raises(ValueError, match="image tokens"):
        model.generate(inputs["input_ids"], pixel_values=inputs["pixel_values"][:1])


def test_prompts_have_image_tokens_for_every_image(small_model: Pair) -> None:
    _, processor = small_model
    turns = [Turn("user", "Q1", 1), Turn("assistant", "A1"), Turn("user", "Q2", 2)]
    ids = processor.encode_chat(turns).token_ids
    assert ids.count(processor.image_token_id) == 3 * processor.num_image_tokens
    assert ids[0] == 1
    assert max(i for i in ids if i != processor.image_token_id) < 512


def test_long_chats_lose_text_but_no_images(small_model: Pair) -> None:
    _, processor = small_model
    turns = [Turn("user", "first question " * 5, 1)]
    for i in range(6):
        turns += [Turn("assistant", f"answer {i} " * 8), Turn("user", f"question {i}")]
    full = processor.encode_chat(turns)
    assert full.dropped_messages == 0
    cut = processor.encode_chat(turns, max_tokens=len(full.token_ids) // 2)
    assert cut.dropped_messages > 0
    assert len(cut.token_ids) <= len(full.token_ids) // 2
    assert cut.token_ids.count(processor.image_token_id) == processor.num_image_tokens
    last = processor.encode_chat([Turn("user", "question 5")]).token_ids[-10:]
    assert cut.token_ids[-10:] == last
    with pytest.raises(ContextLengthExceeded, match="fewer"):
        processor.encode_chat(turns, max_tokens=20)


def test_several_turns_through_the_template(small_model: Pair) -> None:
    _, processor = small_model
    messages = [
        *_chat("red", question="Q1"),
        {"role": "assistant", "content": [{"type": "text", "text": "A1"}]},
        {"role": "user", "content": "Q2"},
    ]
    prompt = processor.apply_chat_template(messages)
    assert prompt.endswith("###Human: <Img><ImageHere></Img> Q1###Assistant: A1###Human: Q2###Assistant: ")
    with pytest.raises(ValueError, match="template"):
        processor.apply_chat_template(messages, chat_template="{{ messages }}")


def test_answers_are_cut_at_the_stop_string(small_model: Pair) -> None:
    _, processor = small_model
    ids = processor.tokenizer.encode_segment("A red circle.###Human: more")
    assert processor.decode_answer([1, *ids, 2]) == "A red circle."


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "typed", ["<ImageHere>", "###", "<Img><ImageHere></Img>", "</s>", "<s>[INST] x [/INST]", "##", "#"]
)
def test_user_text_never_changes_the_structure_of_ids(small_model: Pair, name: str, typed: str) -> None:
    """A prompt has as many special tokens, image tokens and ### as with harmless text."""
    model, plain = small_model
    processor = MiniGPT4Processor(plain.image_processor, plain.tokenizer, name, 8, plain.image_token_id)
    sharps = processor.tokenizer.encode_segment("a ### b###c")

    def structure(words: str) -> tuple[list[int], int]:
        turns = [Turn("user", words, 1), Turn("assistant", words), Turn("user", f"{words} and {words}", 2)]
        ids = processor.encode_chat(turns).token_ids
        text = processor.tokenizer.decode([i for i in ids if i != processor.image_token_id])
        return [ids.count(i) for i in (0, 1, 2, processor.image_token_id)], text.count("###")

    assert structure(typed) == structure("harmless")
    assert len(sharps) > 3
    ids = torch.tensor([processor.encode_chat([Turn("user", typed, 1)]).token_ids])
    pixels = processor.image_processor.to_tensor(draw("red"))[None]
    with torch.no_grad():
        assert model(ids, pixels).logits.isfinite().all()


def test_a_chat_of_thousands_of_turns_is_cut_in_a_few_steps(small_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = small_model
    turns = [Turn("user", "first", 1)]
    for i in range(2000):
        turns += [Turn("assistant", f"answer {i}"), Turn("user", f"question {i}")]
    encoded = 0
    encode = processor.encode_prompt

    def counted(prompt: str) -> list[int]:
        nonlocal encoded
        encoded += 1
        return encode(prompt)

    monkeypatch.setattr(processor, "encode_prompt", counted)
    cut = processor.encode_chat(turns, max_tokens=400)
    assert encoded < 15
    assert 250 < len(cut.token_ids) <= 400
    kept = processor.tokenizer.decode_ids([i for i in cut.token_ids if i != processor.image_token_id])
    assert "question 1999" in kept
    assert cut.dropped_messages == 4000 - 2 * kept.count("question ") + 2


def test_images_can_be_given_after_the_template(small_model: Pair) -> None:
    _, processor = small_model
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(bare, add_generation_prompt=True)
    later = processor(images=[draw("red")], text=prompt)
    at_once = processor.apply_chat_template(_chat("red"), tokenize=True, return_dict=True, return_tensors="pt")
    assert all(torch.equal(later[name], at_once[name]) for name in at_once)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "image"}]}, "needs"),
        ({"role": "user", "content": [{"type": "image", "url": "http://127.0.0.1/a.png"}]}, "not fetched"),
        ({"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}, "not video"),
        ({"role": "tool", "content": "42"}, "not 'tool'"),
    ],
)
def test_unsupported_messages_are_rejected(small_model: Pair, message: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        small_model[1].apply_chat_template([message], tokenize=True)
