import base64
import copy
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from drawing import draw
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from minigpt4_serve.errors import ContextLengthExceeded
from minigpt4_serve.model import (
    MiniGPT4ForConditionalGeneration,
    MiniGPT4ImageProcessor,
    MiniGPT4Processor,
    Turn,
)
from minigpt4_serve.prompt.variants import VARIANTS
from minigpt4_serve.settings import TINY_MODEL

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
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 511}
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, chat in zip(together, chats, strict=True):
        single = processor.apply_chat_template(chat, tokenize=True)
        alone = model.generate(**single, **options)[0, single["input_ids"].shape[1] :]
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


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 1), ({"num_beams": 3, "num_return_sequences": 2}, 2), ({"return_dict_in_generate": True}, 1)],
)
def test_generate_returns_prompt_and_answer(small_model: Pair, options: dict[str, Any], rows: int) -> None:
    model, processor = small_model
    inputs = processor.apply_chat_template(_chat("red"), tokenize=True)
    prompt = inputs["input_ids"]
    fixed = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    out = model.generate(**inputs, **fixed, **options)
    ids = out if isinstance(out, torch.Tensor) else out.sequences
    assert ids.shape == (rows, prompt.shape[1] + 4)
    assert torch.equal(ids[:, : prompt.shape[1]], prompt.expand(rows, -1))
    embeds = model.embed_prompt(prompt, inputs["pixel_values"])
    new = model.generate(inputs_embeds=embeds, **fixed, **options)
    assert torch.equal(new if isinstance(new, torch.Tensor) else new.sequences, ids[:, prompt.shape[1] :])


def test_the_recipe_of_model_pages_gives_the_answer() -> None:
    model = AutoModelForImageTextToText.from_pretrained(TINY_MODEL, dtype="float32")
    processor = AutoProcessor.from_pretrained(TINY_MODEL)
    content = [{"type": "image", "path": TINY_MODEL / "example.png"}, {"type": "text", "text": "What is this?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    out = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    answer = processor.decode(out[0][inputs["input_ids"].shape[-1] :], skip_special_tokens=True)
    assert "moon" in answer
    assert "###Human" not in answer
    assert processor.decode(out[0], skip_special_tokens=True).endswith(answer.strip())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("last", "options", "ending"),
    [
        ("user", {}, "Q{separator}{assistant}"),
        ("user", {"add_generation_prompt": True}, "Q{separator}{assistant}"),
        ("user", {"add_generation_prompt": False}, "Q{separator}"),
        ("user", {"continue_final_message": True}, "Q"),
        ("assistant", {}, "{assistant}A{end}"),
        ("assistant", {"add_generation_prompt": False}, "{assistant}A{end}"),
        ("assistant", {"add_generation_prompt": True}, "{assistant}A{separator}{assistant}"),
        ("assistant", {"continue_final_message": True}, "{assistant}A"),
    ],
)
def test_how_a_rendered_chat_ends(
    small_model: Pair, name: str, last: str, options: dict[str, bool], ending: str
) -> None:
    plain = small_model[1]
    processor = MiniGPT4Processor(plain.image_processor, plain.tokenizer, name, 8, plain.image_token_id)
    variant = VARIANTS[name]
    template = variant.template
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    end = template.separator or variant.answer_end
    expected = ending.format(separator=template.separator, assistant=template.assistant, end=end)
    assert processor.apply_chat_template(messages[: 1 if last == "user" else 2], **options).endswith(expected)


def test_a_chat_is_either_continued_or_answered(small_model: Pair) -> None:
    with pytest.raises(ValueError, match="not both"):
        small_model[1].apply_chat_template(_chat("red"), add_generation_prompt=True, continue_final_message=True)


def test_every_form_of_an_image_gives_the_same_inputs(small_model: Pair, tmp_path: Path) -> None:
    _, processor = small_model
    image = draw("red")
    path = tmp_path / "red.png"
    image.save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    array = numpy.array(image)
    url = f"data:image/png;base64,{data}"
    forms: list[Any] = [[image], [[image]], path, str(path), url, array, array[None], array / 255.0, [[array]]]
    forms += [torch.tensor(array), torch.tensor(array).permute(2, 0, 1), torch.tensor(array).permute(2, 0, 1) / 255]
    expected = processor(images=image, text="<ImageHere>")
    for form in forms:
        given = processor(images=form, text="<ImageHere>")
        assert all(torch.equal(given[name], expected[name]) for name in expected)
    parts: list[dict[str, Any]] = [{"image": form} for form in forms[3:]]
    parts += [{"path": path}, {"url": url}, {"base64": data}, {"type": "image_url", "image_url": {"url": url}}]
    for part in parts:
        chat = [{"role": "user", "content": [{"type": "image", **part}]}]
        pixels = processor.apply_chat_template(chat, tokenize=True)["pixel_values"]
        assert torch.equal(pixels, expected["pixel_values"])


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 4), (4, 9, 7), (1, 9, 7)])
def test_gray_and_transparent_arrays_are_images(small_model: Pair, shape: tuple[int, ...]) -> None:
    pixels = small_model[1].image_processor(numpy.full(shape, 255, numpy.uint8), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], small_model[1].image_processor.to_tensor(Image.new("RGB", (7, 9), "white")))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (5, "not int"),
        ("https://example.org/a.png", "not fetched"),
        (numpy.zeros((9, 7, 2)), "shape"),
        (numpy.full((9, 7, 3), -1.0), "0 to 1"),
        (numpy.full((9, 7, 3), 300), "0 to 255"),
        (numpy.array([["a"]]), "numbers"),
    ],
)
def test_what_is_no_image_is_refused(small_model: Pair, wrong: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        small_model[1](images=wrong, text="<ImageHere>")


@pytest.mark.parametrize(
    ("options", "width", "first"),
    [
        ({}, 0, 3),
        ({"padding_side": "right"}, 0, 1),
        ({"padding": "max_length", "max_length": 50}, 50, 3),
        ({"truncation": True, "max_length": 6}, 6, 3),
        ({"add_special_tokens": False}, -1, 3),
        ({"return_tensors": "np"}, 0, 3),
        ({"return_tensors": None}, 0, 3),
    ],
)
def test_tokenizer_options_of_the_processor(small_model: Pair, options: dict[str, Any], width: int, first: int) -> None:
    _, processor = small_model
    longest = len(processor.encode_prompt("a red circle and a blue square"))
    inputs = processor(text=["a", "a red circle and a blue square"], **options)
    rows = [list(row) for row in inputs["input_ids"]]
    assert {len(row) for row in rows} == {width if width > 0 else longest + width}
    assert (rows[0][0] == processor.tokenizer.pad_token_id) == (first != 1)
    assert sum(map(int, inputs["attention_mask"][1])) == min(len(rows[1]), longest)


def test_the_image_processor_has_an_auto_class(small_model: Pair, tmp_path: Path) -> None:
    small_model[1].save_pretrained(tmp_path)
    small_model[0].config.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MiniGPT4ImageProcessor
    assert loaded.image_size == small_model[1].image_processor.image_size


def test_labels_equal_to_the_inputs_ignore_image_tokens(small_model: Pair) -> None:
    model, processor = small_model
    inputs = processor.apply_chat_template(_chat("red"), tokenize=True)
    ids = inputs["input_ids"]
    masked = ids.masked_fill(ids == processor.image_token_id, -100)
    with torch.no_grad():
        assert torch.equal(model(**inputs, labels=ids).loss, model(**inputs, labels=masked).loss)
    assert processor.image_token_id in ids  # not changed in place


@pytest.mark.parametrize("rows", [500, 520])
def test_resized_embeddings_answer_and_are_saved(small_model: Pair, tmp_path: Path, rows: int) -> None:
    model, processor = small_model
    inputs = processor.apply_chat_template(_chat("red"), tokenize=True)
    inputs["input_ids"] = inputs["input_ids"].where(inputs["input_ids"] == processor.image_token_id, 3)
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(rows)
    assert resized.get_output_embeddings().weight.shape[0] == rows
    with torch.no_grad():
        logits = resized(**inputs, labels=inputs["input_ids"]).logits
        kept = min(rows, 512)
        assert torch.allclose(logits[..., :kept], model(**inputs).logits[..., :kept], atol=1e-5)
        resized.save_pretrained(tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert torch.equal(again(**inputs).logits, logits)
