"""Conversion of the recorded files in the original's layout. tests/tools/test_parity.py compares the numbers."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error, WeightsError
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights import writer
from minigpt4_serve.weights.convert import Conversion, Progress, convert
from minigpt4_serve.weights.infer_config import Hyperparameters
from minigpt4_serve.weights.load import load_model

CHECKPOINTS = {
    "vicuna": "pretrained_minigpt4_vicuna_tiny.pth",
    "llama2": "pretrained_minigpt4_llama2_tiny.pth",
    "v2": "minigptv2_checkpoint_tiny.pth",
}


@pytest.fixture
def files(golden: Path, tmp_path: Path) -> Path:
    """A copy of the original's files that a test may damage."""
    for part in ("weights", "llm"):
        shutil.copytree(golden / part, tmp_path / part)
    return tmp_path


def dimensions(variant: str) -> Hyperparameters:
    """Those of the recorded files."""
    return Hyperparameters(vit_heads=4, vit_depth=3, qformer_heads=4, image_size=84 if variant == "v2" else None)


def run(files: Path, variant: str = "vicuna", **changes: Any) -> Conversion:
    arguments: dict[str, Any] = {
        "variant": variant,
        "llm": files / "llm" / ("vicuna-tiny" if variant == "vicuna" else "llama2-tiny"),
        "vit": files / "weights" / "eva_vit_g.pth",
        "qformer": files / "weights" / "blip2_pretrained_flant5xxl.pth" if variant == "vicuna" else None,
        "checkpoint": files / "weights" / CHECKPOINTS.get(variant, ""),
        "out": files / "made" / "model",
        "hyperparameters": dimensions(variant),
    }
    return convert(**{**arguments, **changes})


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Load a .pth, change its tensors, save it again."""
    content = torch.load(path, weights_only=True)
    change(content.get("model", content))
    torch.save(content, path)


def rename(path: Path, old: str, new: str) -> None:
    rewrite(path, lambda tensors: tensors.__setitem__(new, tensors.pop(old)))


def refused(files: Path, variant: str = "vicuna", **changes: Any) -> MiniGPT4Error:
    """The error of a run that must fail; nothing may be left of it."""
    with pytest.raises((WeightsError, InvalidRequest)) as caught:
        run(files, variant, **changes)
    made = files / "made"
    assert not made.exists() or list(made.iterdir()) == []
    assert "\n" not in caught.value.message
    return caught.value


def test_the_folder_needs_nothing_but_transformers_auto_classes(golden: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    conversion = run(golden, out=tmp_path / "m", on_progress=seen.append)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "config.json", "generation_config.json", "minigpt4_hub.py", "model.safetensors", "processor_config.json",
        "sources.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    assert type(model) is MiniGPT4ForConditionalGeneration
    assert model.dtype == torch.float16
    assert type(AutoProcessor.from_pretrained(tmp_path / "m")) is MiniGPT4Processor
    rules = model.generation_config
    assert (rules.temperature, rules.top_p, rules.top_k, rules.repetition_penalty) == (1.0, 0.9, 50, 1.05)
    assert [note[:28] for note in conversion.notes] == ["The LLM's embedding has 513 "]
    assert seen[-1].done == seen[-1].total > 0
    assert {progress.step for progress in seen} == {"reading", "writing"}


def test_sources_name_every_input_by_its_digest(golden: Path, tmp_path: Path) -> None:
    run(golden, "v2", out=tmp_path / "m")
    sources = json.loads((tmp_path / "m" / "sources.json").read_text(encoding="utf-8"))
    digests = {file["path"]: file["sha256"] for file in json.loads((golden / "MANIFEST.json").read_text())["files"]}
    assert sources["inputs"]["vit"][0]["sha256"] == digests["weights/eva_vit_g.pth"]
    assert sources["inputs"]["checkpoint"][0]["sha256"] == digests["weights/minigptv2_checkpoint_tiny.pth"]
    assert {file["sha256"] for file in sources["inputs"]["llm"]} >= {digests["llm/llama2-tiny/model.safetensors"]}
    assert (sources["variant"], sources["lora"], sources["dtype"]) == ("v2", "merged", "float16")
    assert str(golden) not in json.dumps(sources) + (tmp_path / "m" / "config.json").read_text(encoding="utf-8")


def test_shards_of_either_kind_give_the_same_tensors(golden: Path, tmp_path: Path) -> None:
    run(golden, out=tmp_path / "one", dtype="float32")
    run(golden, out=tmp_path / "many", dtype="float32", max_shard_bytes=400_000, llm=golden / "llm" / "vicuna-tiny-bin")
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 3
    many = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    model, _ = load_model(ModelSettings(path=tmp_path / "many", device="cpu"))
    assert torch.equal(model.query_tokens, one["query_tokens"])


def test_lora_can_be_kept_and_has_either_key_format(golden: Path, files: Path) -> None:
    run(golden, "v2", out=files / "merged", dtype="float32")
    run(golden, "v2", out=files / "kept", dtype="float32", keep_lora=True)
    checkpoint = files / "weights" / CHECKPOINTS["v2"]

    def newer_peft(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".lora_" in name]:
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    rewrite(checkpoint, newer_peft)
    run(files, "v2", out=files / "newer", dtype="float32")
    merged, newer = (load_file(files / name / "model.safetensors") for name in ("merged", "newer"))
    assert all(torch.equal(merged[name], newer[name]) for name in merged)
    kept = load_file(files / "kept" / "model.safetensors")
    layer = "language_model.model.layers.0.self_attn.q_proj"
    assert kept[f"{layer}.lora_A.weight"].shape == (8, 64)
    assert not torch.equal(kept[f"{layer}.weight"], merged[f"{layer}.weight"])
    # Kept LoRA works in plain transformers, and is merged where speed counts.
    ids = torch.arange(3, 40)[None]
    plain = AutoModelForImageTextToText.from_pretrained(files / "kept")
    reference, _ = load_model(ModelSettings(path=files / "merged", device="cpu"))
    fast, _ = load_model(ModelSettings(path=files / "kept", device="cpu"))
    with torch.no_grad():
        expected = reference(ids).logits
        assert (plain(ids).logits - expected).abs().max() < 1e-4
        assert (fast(ids).logits - expected).abs().max() < 1e-4
    assert fast.state_dict().keys() == reference.state_dict().keys()


def test_trained_weights_override_the_base_ones(files: Path) -> None:
    """ln_vision is 1 and 0 without a Q-Former, unless a checkpoint has its own."""
    run(files, "llama2", out=files / "plain", dtype="float32")
    norm = "vision_model.post_layernorm.weight"
    assert load_file(files / "plain" / "model.safetensors")[norm].unique().tolist() == [1.0]
    own = torch.linspace(0, 1, 88)
    rewrite(files / "weights" / CHECKPOINTS["llama2"], lambda t: t.update({"ln_vision.weight": own}))
    run(files, "llama2", out=files / "own", dtype="float32")
    assert torch.equal(load_file(files / "own" / "model.safetensors")[norm], own)


def test_an_embedding_with_more_rows_than_configured_is_kept(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 513', '"vocab_size": 512'))
    conversion = run(files)
    assert conversion.config.text_config.vocab_size == 513
    assert conversion.config.image_token_id == 513
    assert any("512" in note and "513" in note for note in conversion.notes)


def test_wrong_special_ids_are_corrected(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}))
    text = run(files).config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (1, 2, None)


# --- wrong or damaged inputs ---


@pytest.mark.parametrize("name", ["eva_vit_g.pth", CHECKPOINTS["vicuna"], "blip2_pretrained_flant5xxl.pth"])
def test_a_truncated_file(files: Path, name: str) -> None:
    path = files / "weights" / name
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert "cut short" in refused(files).message
    os.truncate(path, 0)
    assert "not a PyTorch checkpoint" in refused(files).message


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["weights/eva_vit_g.pth", "llm/vicuna-tiny-bin/pytorch_model-00001-of-00002.bin"])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_with_code_runs_nothing(files: Path, where: str, old_format: bool) -> None:
    marker = files / "owned"
    poison = {"cls_token": torch.zeros(1), "x": Malice(marker)}
    torch.save(poison, files / where, _use_new_zipfile_serialization=not old_format)
    message = refused(files, llm=files / "llm" / "vicuna-tiny-bin").message
    assert "nothing of it ran" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("variant", "given", "hint"),
    [
        ("vicuna", "llama2", "--variant llama2"),
        ("vicuna", "v2", "--variant v2"),
        ("llama2", "v2", "--variant v2"),
        ("llama2", "vicuna", "--variant vicuna"),
        ("v2", "llama2", "--variant llama2"),
        ("v2", "vicuna", "--variant vicuna"),
    ],
)
def test_the_wrong_variant(files: Path, variant: str, given: str, hint: str) -> None:
    error = refused(files, variant, checkpoint=files / "weights" / CHECKPOINTS[given])
    assert hint in error.message
    assert CHECKPOINTS[given] in error.message


def test_a_missing_shard(files: Path) -> None:
    folder = files / "llm" / "vicuna-tiny-bin"
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin is missing" in refused(files, llm=folder).message
    (folder / "pytorch_model.bin.index.json").unlink()
    assert "pytorch_model-00002-of-00002.bin is missing" in refused(files, llm=folder).message
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    assert "has no weights" in refused(files, llm=folder).message


def test_a_renamed_key_is_named_on_both_sides(files: Path) -> None:
    rename(files / "weights" / "eva_vit_g.pth", "blocks.1.attn.proj.bias", "blocks.1.attn.projection.bias")
    error = refused(files)
    assert isinstance(error, WeightsError)
    assert error.missing == ["vision_model.encoder.layers.1.self_attn.projection.bias"]
    assert error.unexpected == ["blocks.1.attn.projection.bias  (eva_vit_g.pth)"]
    assert "missing: vision_model.encoder.layers.1" in str(error)


def test_a_renamed_key_of_the_llm(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.gate.weight"] = tensors.pop("model.layers.0.mlp.gate_proj.weight")
    save_file(tensors, path)
    error = refused(files)
    assert isinstance(error, WeightsError)
    assert error.missing == ["language_model.model.layers.0.mlp.gate_proj.weight"]
    assert error.unexpected == ["language_model.model.layers.0.mlp.gate.weight"]


def test_half_a_lora(files: Path) -> None:
    name = "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    rewrite(files / "weights" / CHECKPOINTS["v2"], lambda tensors: tensors.pop(name))
    error = refused(files, "v2")
    assert isinstance(error, WeightsError)
    assert error.unexpected == ["language_model.model.layers.1.self_attn.v_proj.lora_A.weight"]


def test_a_shape_that_does_not_fit(files: Path) -> None:
    rewrite(files / "weights" / "eva_vit_g.pth", lambda t: t.update({"blocks.0.mlp.fc2.bias": torch.zeros(7)}))
    assert "vision_model.encoder.layers.0.mlp.fc2.bias is [7], not [88]" in refused(files).message


def test_the_wrong_llm_size(files: Path) -> None:
    checkpoint = files / "weights" / CHECKPOINTS["vicuna"]
    rewrite(checkpoint, lambda t: t.update({"llama_proj.weight": torch.zeros(5120, 48)}))
    assert "hidden size 5120 (13B), but --llm has 64" in refused(files).message


def test_delta_weights(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "model.safetensors"
    save_file({name: tensor * 0.001 for name, tensor in load_file(path).items()}, path)
    assert "delta weights" in refused(files).message


def test_another_kind_of_llm(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "config.json"
    path.write_text('{"model_type": "opt", "hidden_size": 64}')
    assert "'opt'" in refused(files).message
    path.write_text("{")
    assert "damaged" in refused(files).message
    path.rename(path.with_name("params.json"))
    assert "as Meta delivers it" in refused(files).message
    assert "no folder" in refused(files, llm=files / "nowhere").message


def test_a_vocabulary_that_is_missing_or_damaged(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "tokenizer.model"
    path.write_bytes(b"nonsense")
    assert "tokenizer.model is damaged" in refused(files).message
    path.unlink()
    assert "has no tokenizer.model" in refused(files).message


def test_damaged_safetensors(files: Path) -> None:
    path = files / "llm" / "vicuna-tiny" / "model.safetensors"
    os.truncate(path, 100_000)
    assert "cut short" in refused(files).message


def test_something_that_is_no_checkpoint(files: Path) -> None:
    page = files / "page.pth"
    page.write_text("<html>Sign in to continue</html>")  # what drives deliver instead of large files
    assert "is a web page, not a PyTorch checkpoint" in refused(files, checkpoint=page).message
    page.write_text("something else")
    assert "is not a PyTorch checkpoint" in refused(files, checkpoint=page).message
    torch.save({"epoch": 3}, page)
    assert "contains no tensors" in refused(files, checkpoint=page).message
    assert "no file" in refused(files, checkpoint=files / "nowhere.pth").message


def test_swapped_files(files: Path) -> None:
    weights = files / "weights"
    assert "looks like a vision tower (--vit)" in refused(files, checkpoint=weights / "eva_vit_g.pth").message
    vit = weights / CHECKPOINTS["vicuna"]
    assert "looks like a MiniGPT-4 checkpoint" in refused(files, vit=vit).message
    assert "looks like a vision tower" in refused(files, qformer=weights / "eva_vit_g.pth").message
    assert "has no Q-Former" in refused(files, "v2", qformer=weights / "blip2_pretrained_flant5xxl.pth").message
    assert "--qformer" in refused(files, qformer=None).message


def test_numbers_that_do_not_fit_the_dtype(files: Path) -> None:
    rewrite(files / "weights" / CHECKPOINTS["vicuna"], lambda t: t["llama_proj.bias"].fill_(1e6))
    assert "--dtype bfloat16" in refused(files).message
    assert run(files, dtype="bfloat16").config.dtype == torch.bfloat16


def test_unknown_dimensions_must_be_given(golden: Path, files: Path) -> None:
    shutil.copy(golden / "MANIFEST.json", files)  # a recorded set's, which has them: it is not read
    assert "--vit-depth" in refused(files, hyperparameters=None).message
    assert "--qformer-heads" in refused(files, hyperparameters=Hyperparameters(vit_depth=3, vit_heads=4)).message
    run(files, hyperparameters=Hyperparameters(vit_depth=3, vit_heads=4, qformer_heads=4))


@pytest.mark.parametrize("change", [{"dtype": "int8"}, {"variant": "v3"}])
def test_impossible_arguments(golden: Path, tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="must be"):
        run(golden, out=tmp_path / "m", **change)


def test_an_output_folder_that_is_taken(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    run(golden, out=tmp_path / "m")  # an empty folder is accepted
    with pytest.raises(InvalidRequest, match="exists already"):
        run(golden, out=tmp_path / "m")


def test_a_place_that_cannot_be_written(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="can't be"):
        run(golden, out=tmp_path / "file" / "m")
    with pytest.raises(InvalidRequest, match="can't be written"):
        run(golden, out=Path("/proc/nowhere/m"))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_file", fail)


def test_no_space_left(files: Path, monkeypatch: pytest.MonkeyPatch, full_disk: None) -> None:
    assert "became full" in refused(files).message
    usage = shutil.disk_usage(files)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    assert "has only 0.0 MiB free" in refused(files).message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one model."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_real_disk_that_is_full_or_becomes_full(golden: Path, small_disk: Path) -> None:
    full = small_disk / "thesis"

    def fill(progress: Progress) -> None:
        """Another process fills the disk while the model is written."""
        if progress.step == "writing" and not full.exists():
            with contextlib.suppress(OSError):
                full.write_bytes(bytes(5 * 2**20))

    with pytest.raises(WeightsError, match="became full"):
        run(golden, out=small_disk / "m", on_progress=fill)
    assert list(small_disk.iterdir()) == [full]
    with pytest.raises(WeightsError, match=r"has only 0\.0 MiB free"):
        run(golden, out=small_disk / "m")
    assert list(small_disk.iterdir()) == [full]
    full.unlink()
    assert run(golden, out=small_disk / "m").folder.is_dir()


@pytest.mark.parametrize("kind", ["ctrl-c", "terminated"])
def test_an_interrupted_run_leaves_nothing(golden: Path, tmp_path: Path, kind: str) -> None:
    during: list[str] = []

    def interrupt(progress: Progress) -> None:
        if progress.step == "writing" and progress.done > progress.total // 2:
            during.extend(path.name for path in tmp_path.iterdir())
            if kind == "ctrl-c":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt if kind == "ctrl-c" else SystemExit):
        run(golden, out=tmp_path / "m", on_progress=interrupt)
    assert during[0].startswith(".m.")
    assert during[0].endswith(".partial")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
