"""Weight files and model folders of strangers: damaged, claiming much, naming code. Each is one WeightsError."""

import contextlib
import io
import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model_folder import read_json_object, read_prompt_encoder
from minigpt4_serve.settings import TINY_MODEL, ModelSettings
from minigpt4_serve.weights import load
from minigpt4_serve.weights.infer_config import read_llm_config
from minigpt4_serve.weights.load import load_model, read_config
from minigpt4_serve.weights.reader import llm_files, model_files, open_tensors

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13476835328\n"
DRIVE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


@pytest.mark.parametrize("name", ["a.pth", "pytorch_model.bin", "model.safetensors", "config.json"])
@pytest.mark.parametrize(
    ("data", "kind", "advice"),
    [
        (LFS, "a Git LFS pointer", "git lfs pull"),
        (DRIVE, "a web page of Google Drive", "in a browser"),
        (b"\xef\xbb\xbf\n <HTML><body>Sign in</body>", "a web page", "in a browser"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "error message", "in a browser"),
        (b'{"error":"Access to model is restricted"}', "error message", "in a browser"),
        (b"/annex/objects/SHA256E-s100--ab.pth\n", "a git-annex pointer", "git annex get"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "an archive (gzip)", "unpack"),
        (b"", "an empty file", "download it again"),
    ],
)
def test_a_download_that_went_wrong_is_named(tmp_path: Path, name: str, data: bytes, kind: str, advice: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        (read_json_object if path.suffix == ".json" else open_tensors)(path)
    assert f"{path} is " in caught.value.message
    assert kind in caught.value.message
    assert advice in caught.value.message


def test_a_vocabulary_that_is_a_pointer_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(LFS)
    with pytest.raises(WeightsError, match="Git LFS"):
        read_prompt_encoder(folder)


class _Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def checkpoint(path: Path, content: Any = None, *, pickled: bytes | None = None, compression: int = 0) -> Path:
    """A checkpoint, its ``data.pkl`` replaced if given."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(4)} if content is None else content, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.namelist():
            is_pickle = entry.endswith("data.pkl") and pickled is not None
            new.writestr(entry, pickled if is_pickle else old.read(entry))
    return path


def _deflated(path: Path) -> Path:
    return checkpoint(path, pickled=b"\0" * 2**26, compression=zipfile.ZIP_DEFLATED)


def _broadcast(path: Path) -> Path:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path)
    return path


def _same_list_again(path: Path) -> Path:
    """{n: OrderedDict(the same list)}, for many n."""
    pairs = b"](" + b"(K\x01K\x01t" * 3 + b"e"
    return checkpoint(path, pickled=b"\x80\x02" + b"ccollections\nOrderedDict\n" + pairs + b"\x85R.")


def _same_tuple_again(path: Path) -> Path:
    """A size made from a long tuple."""
    return checkpoint(path, pickled=b"\x80\x02ctorch\nSize\n(" + b"K\x01" * 1000 + b"t\x85R.")


def _plain_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return path


def _legacy(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: checkpoint(path, {"a": bytearray(9)}), "not only tensors"),
        (lambda path: checkpoint(path, pickled=pickle.dumps(_Call(bytearray, 4 * 10**9), 2)), "not only tensors"),
        (lambda path: checkpoint(path, pickled=pickle.dumps(_Call(set, [1]), 2)), "not only tensors"),
        (lambda path: checkpoint(path, pickled=pickle.dumps(_Call(torch.UntypedStorage, 10**9), 2)), "not only"),
        (lambda path: checkpoint(path, pickled=pickle.dumps(_Call(bytearray, 4 * 10**9), 4)), "not only tensors"),
        (lambda path: _legacy(path, {"a": bytearray(9)}), "not only tensors"),
        (lambda path: checkpoint(path, {"a": torch.ones(2).to_sparse()}), "not only tensors"),
        (_same_list_again, "not only tensors"),
        (_same_tuple_again, "more than tensors"),
        (_deflated, "isn't as PyTorch writes"),
        (lambda path: checkpoint(path, pickled=b"\0" * 2**24), "more than tensors"),
        (_broadcast, "claims more numbers"),
        (_plain_zip, "a zip archive without a checkpoint"),
        (lambda path: checkpoint(path, pickled=b"\x80\x02R."), "damaged"),
        (lambda path: checkpoint(path, pickled=b"\x80\x02]."), "contains no tensors"),
        (lambda path: shutil.copy(TINY_MODEL / "model.safetensors", path), "rename it"),
    ],
)
def test_checkpoints_that_claim_much_or_call_much(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = Path(make(tmp_path / "a.pth"))
    with pytest.raises(WeightsError, match=message):
        open_tensors(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_code_saves_beside_weights_is_read(tmp_path: Path, legacy: bool) -> None:
    layer = torch.nn.Linear(3, 4).bfloat16()
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    content = {
        "model": {**layer.state_dict(), "shared": layer.weight, "count": torch.tensor(3), "half": torch.ones(2).half()},
        "optimizer": optimizer.state_dict(),
        "config": {"lr": 0.1, "size": torch.Size([1]), "names": ("a", None, True), "dtype": torch.float16},
        "epoch": 3,
    }
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    tensors = open_tensors(path)
    assert tensors.keys() == {"weight", "bias", "shared", "count", "half"}
    assert torch.equal(tensors["shared"].read(), layer.weight)
    torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(open_tensors(path)["weight"].read(), layer.weight)


@pytest.mark.parametrize("legacy", [False, True])
def test_mutated_checkpoints_end_in_one_sentence(tmp_path: Path, legacy: bool) -> None:
    chance = random.Random(0)
    path = tmp_path / "a.pth"
    content = {"model": torch.nn.Linear(3, 4).state_dict(), "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    original = path.read_bytes()
    pickled = original.index(b"\x80\x02")
    for _ in range(400):
        data = bytearray(original)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(pickled, min(pickled + 600, len(data)))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        with contextlib.suppress(WeightsError, InvalidRequest):
            for tensor in open_tensors(path).values():
                tensor.read()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model."""
    target = tmp_path / "model"
    shutil.copytree(TINY_MODEL, target)
    return target


def change(path: Path, changes: dict[str, Any]) -> None:
    """Change values of a JSON file; a key may be a path with dots."""
    values = json.loads(path.read_text()) if path.is_file() else {}
    for key, value in changes.items():
        target = values
        *parents, last = key.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(values))


CONFIGS: list[dict[str, Any]] = [
    {"text_config.num_hidden_layers": 10**7},
    {"vision_config.num_hidden_layers": 10**7},
    {"qformer_config.num_hidden_layers": 10**7},
    {"text_config.num_attention_heads": 0},
    {"text_config.num_hidden_layers": -1},
    {"text_config.hidden_size": 10**9},
    {"text_config.vocab_size": 10**12},
    {"num_query_tokens": 10**9},
    {"vision_config.image_size": 10**6},
    {"vision_config.patch_size": 0},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"dtype": "evil"},
    {"text_config": []},
    {"text_config": {"model_type": "evil"}},
    {"text_config": {"model_type": "gpt2", "n_layer": 10**7}},
    {"text_config": {"model_type": "mixtral", "num_local_experts": 10**7}},
    {"vision_config.stages": [[10**7, 3]]},
    {"text_config.rope_parameters": {"rope_type": "evil"}},
    {"vision_config": "x"},
    {"lora_config": {"r": 0}},
    {"lora_config": 5},
    {"image_token_id": "x"},
    {"conversation_format": ["vicuna"]},
    {"text_config.hidden_act": "evil"},
]
FILES: list[tuple[str, str]] = [
    ("config.json", "[" * 100_000),
    ("config.json", '{"a":' * 100_000),
    ("config.json", '{"model_type": "minigpt4", "x": ' + "9" * 5000 + "}"),
    ("processor_config.json", "[]"),
    ("processor_config.json", '{"image_processor": 5}'),
    ("tokenizer_config.json", "[]"),
    ("tokenizer_config.json", '{"init_inputs": 5}'),
    ("tokenizer_config.json", "[" * 100_000),
    ("generation_config.json", "[]"),
    ("generation_config.json", '{"watermarking_config": 5}'),
    ("generation_config.json", "[" * 100_000),
]
PROCESSORS: list[dict[str, Any]] = [
    {"num_image_tokens": -1},
    {"num_image_tokens": 10**9},
    {"num_image_tokens": 18},
    {"num_image_tokens": True},
    {"image_token_id": 799},
    {"image_token_id": "800"},
    {"conversation_format": "evil"},
    {"conversation_format": "v2"},
    {"image_processor.image_size": 10**6},
    {"image_processor.image_size": 224},
]


def refused(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_model(ModelSettings(path=folder, device="cpu"))
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("changes", CONFIGS, ids=lambda changes: next(iter(changes)))
def test_a_config_with_impossible_values(folder: Path, changes: dict[str, Any]) -> None:
    change(folder / "config.json", changes)
    refused(folder)


@pytest.mark.parametrize(("name", "text"), FILES)
def test_a_file_of_a_folder_that_holds_something_else(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    refused(folder)


@pytest.mark.parametrize("changes", PROCESSORS, ids=lambda changes: next(iter(changes)))
def test_a_processor_that_disagrees_with_the_model(folder: Path, changes: dict[str, Any]) -> None:
    change(folder / "processor_config.json", changes)
    assert "processor_config.json" in refused(folder)


@pytest.mark.parametrize(
    "weight_map", [5, [], {}, {"a": 5}, {"a": None}, {"a": []}, {"a": "../model.safetensors"}, {"a": "/x"}]
)
def test_an_index_that_names_no_files(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "index.json is damaged" in refused(folder)


def test_a_single_file_is_loaded_rather_than_shards(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in model_files(folder)] == ["model.safetensors"]  # as transformers does


def test_an_adapter_is_not_served(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/other"}')
    assert "holds an adapter" in refused(folder)


def test_a_million_numbered_shards_are_not_listed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model-00001-of-99999999.bin").touch()
    with pytest.raises(WeightsError, match="has no weights"):
        llm_files(folder)


MAPS = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil", "AutoProcessor": "evil.Evil"}
MAPS |= {"AutoTokenizer": ["evil.Evil", None], "AutoImageProcessor": "evil.Evil"}


def test_code_that_a_folder_names_never_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = folder / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    code = f"open({str(marker)!r}, 'w')\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    maps = {"auto_map": MAPS}
    kernel = {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel"}
    change(folder / "config.json", {**maps, **kernel, "transformers_weights": "evil.safetensors"})
    for part in ("text_config", "vision_config", "qformer_config"):
        change(folder / "config.json", {f"{part}.{key}": value for key, value in {**maps, **kernel}.items()})
    for name in ("processor_config.json", "tokenizer_config.json", "generation_config.json"):
        change(folder / name, maps)
    config = read_config(folder)
    assert "evil" not in str(config.to_dict())
    assert "someone" not in str(config.to_dict())
    model, processor = load_model(ModelSettings(path=folder, device="cpu"))
    plain, _ = load_model(ModelSettings(path=TINY_MODEL, device="cpu"))
    assert model.config._attn_implementation == plain.config._attn_implementation
    assert processor.encode_prompt("Hello")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["evilcfg", "mistral", None, 5, ["llama"]])
def test_an_llm_of_another_type_is_not_shown_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "evil.Evil"}}))
    with pytest.raises(WeightsError, match="LLaMA"):
        read_llm_config(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "values",
    [{"num_hidden_layers": 10**7}, {"num_attention_heads": 0}, {"rope_scaling": 5}, {"hidden_size": "x"}],
)
def test_an_llm_with_impossible_values(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_llm_config(tmp_path)


def test_a_model_that_does_not_fit_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.serving_memory.available_memory", lambda: 2**20)
    monkeypatch.setattr(load, "MiniGPT4ForConditionalGeneration", None)  # loading would fail
    with pytest.raises(InvalidRequest, match="1\\.0 MiB are available"):
        load_model(ModelSettings(path=folder, device="cpu"))
