import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from drawing import draw
from safetensors.torch import load_file, save_file

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, Turn
from minigpt4_serve.settings import TINY_MODEL, ModelSettings
from minigpt4_serve.weights import load
from minigpt4_serve.weights.load import load_model, resolve_device, resolve_dtype


@pytest.fixture
def folder(small_model: tuple, tmp_path: Path) -> Path:
    model, processor = small_model
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        load_model(ModelSettings(path=folder, device="cpu"))
    return caught.value


def test_a_folder_loads_ready_to_answer(folder: Path, small_model: tuple) -> None:
    model, processor = load_model(ModelSettings(path=folder, device="cpu"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    old = small_model[0].state_dict()
    assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())
    assert processor.encode_chat([Turn("user", "Hi", 1)]).token_ids[0] == 1
    half, _ = load_model(ModelSettings(path=folder, device="cpu", dtype="bfloat16"), attention="eager")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.config.vision_config._attn_implementation == "eager"


def test_every_missing_and_unexpected_key_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["query_toks"] = tensors.pop("query_tokens")
    del tensors["language_projection.bias"]
    save_file(tensors, path)
    error = refused(folder)
    assert error.missing == ["language_projection.bias", "query_tokens"]
    assert error.unexpected == ["query_toks"]


def test_a_wrong_shape_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), "language_projection.bias": torch.zeros(5)}, path)
    assert "language_projection.bias is [5], not [32]" in refused(folder).message


def test_damaged_folders_are_rejected(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)
    assert "cut short" in refused(folder).message
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refused(folder).message
    index = {"weight_map": {"query_tokens": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refused(folder).message
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "index.json is damaged" in refused(folder).message


def test_a_folder_of_something_else(folder: Path, tmp_path: Path) -> None:
    assert "minigpt4 convert" in refused(tmp_path / "nowhere").message
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "'llama'" in refused(folder).message
    (folder / "config.json").write_text("[]")
    assert "damaged" in refused(folder).message


def test_a_folder_without_its_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    assert str(folder) in refused(folder).message


def test_a_vocabulary_that_is_cut_short(folder: Path) -> None:
    os.truncate(folder / "tokenizer.model", 1000)
    assert f"{folder} can't be loaded" in refused(folder).message


@pytest.mark.parametrize(
    "wrong",
    [
        {"conversation_format": "v3"},
        {"text_config": {"model_type": "llama", "hidden_size": "large"}},
        {"vision_config": 5},
        {"num_query_tokens": "8"},
    ],
)
def test_a_configuration_with_a_value_of_the_wrong_kind(folder: Path, wrong: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    assert "describes no MiniGPT-4" in refused(folder).message


@pytest.mark.parametrize(
    ("settings", "advice"),
    [({}, "as bfloat16; cuda had 1.5 GiB free. Use quantization int8 or int4"), ({"quantization": "int8"}, "int4,")],
)
def test_too_little_memory_has_advice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], advice: str
) -> None:
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(load, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**29, 24 * 2**30))
    monkeypatch.setattr(load, "quantize", full)
    monkeypatch.setattr(MiniGPT4ForConditionalGeneration, "to", full)
    with pytest.raises(InvalidRequest) as caught:
        load_model(ModelSettings(path=folder, device="cuda", **settings))
    assert advice in caught.value.message


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.05), ("int4", 0.3)])
def test_quantized_answers_stay_close(small_model: tuple, tmp_path: Path, kind: str, limit: float) -> None:
    from transformers import LlamaConfig

    from minigpt4_serve.model import MiniGPT4Config, MiniGPT4Processor

    _, processor = small_model
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    config = MiniGPT4Config(vision_config=small_model[0].config.vision_config, text_config=text)
    MiniGPT4ForConditionalGeneration(config).save_pretrained(tmp_path)
    parts = (processor.image_processor, processor.tokenizer, config.conversation_format)
    MiniGPT4Processor(*parts, config.num_image_tokens, config.image_token_id).save_pretrained(tmp_path)
    plain, _ = load_model(ModelSettings(path=tmp_path, device="cpu"))
    small, _ = load_model(ModelSettings(path=tmp_path, device="cpu", quantization=kind))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = plain(ids).logits
        error = (small(ids).logits - expected).abs().max() / expected.abs().max()
    assert 0 < error < limit
    inner = "language_model.model.layers.1.mlp.down_proj.weight"
    bits = 8 * small.state_dict()[inner].nbytes / plain.state_dict()[inner].numel()
    assert bits == {"int8": 8, "int4": 4}[kind]
    assert torch.equal(small.language_projection.weight, plain.language_projection.weight)
    assert small.generate(ids[:, :5], max_new_tokens=2, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_projection_sees_the_image(kind: str) -> None:
    from bitsandbytes import nn

    plain, processor = load_model(ModelSettings(device="cpu"))
    quantized, _ = load_model(ModelSettings(device="cpu"))
    layer = plain.language_projection
    sizes = (layer.in_features, layer.out_features)
    if kind == "int4":
        replaced = nn.Linear4bit(*sizes, compute_dtype=torch.float32)
    else:
        replaced = nn.Linear8bitLt(*sizes, has_fp16_weights=False)
    replaced.load_state_dict(layer.state_dict())
    quantized.language_projection = replaced.to("cpu")
    assert not quantized.language_projection.weight.is_floating_point()
    pixels = processor.image_processor.to_tensor(draw("red"))[None]
    with torch.no_grad():
        seen = quantized.get_image_features(pixels).float().flatten()
        assert torch.cosine_similarity(seen, plain.get_image_features(pixels).flatten(), dim=0) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["int4", "int8"])
def test_transformers_own_quantization_answers_and_trains(options: dict[str, bool]) -> None:
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    plain, processor = load_model(ModelSettings(device="cpu"))
    quantization = BitsAndBytesConfig(**options)
    quantized = AutoModelForImageTextToText.from_pretrained(
        TINY_MODEL, dtype=torch.float32, quantization_config=quantization, device_map="cpu"
    )
    content = [{"type": "image", "path": TINY_MODEL / "example.png"}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
    with torch.no_grad():
        seen = quantized.get_image_features(inputs["pixel_values"]).float().flatten()
        expected = plain.get_image_features(inputs["pixel_values"]).flatten()
        assert torch.cosine_similarity(seen, expected, dim=0) > 0.95
        losses = [model(**inputs, labels=inputs["input_ids"]).loss.item() for model in (plain, quantized)]
    assert losses[1] == pytest.approx(losses[0], rel=0.3)
    out = quantized.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert "moon" in processor.decode(out[0], skip_special_tokens=True)


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    with pytest.raises(InvalidRequest, match="no device"):
        resolve_device("gpu9")
    with pytest.raises(InvalidRequest, match="on this machine"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_the_small_model_draws_its_answer_from_a_loaded_folder(folder: Path, small_model: tuple) -> None:
    model, processor = load_model(ModelSettings(path=folder, device="cpu"))
    chat = [{"role": "user", "content": [{"type": "image", "image": draw("red")}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), small_model[0].generate(**inputs, **options))
