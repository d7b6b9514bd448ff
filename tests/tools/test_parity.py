import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from other_set import IMAGES, MEMBERS, write_set
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from minigpt4_serve import cli
from tools.parity import command
from tools.parity.comparison import Comparison
from tools.parity.generation import chat_answers
from tools.parity.prompts import chat_prompts, token_tables
from tools.parity.vision import vision_stages


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ["v1_vicuna", "v1_llama2", "v2"])
def test_every_stage_equals_the_original(golden: Path, scratch: Path, variant: str, attention: str) -> None:
    rows = list(command.compare(golden, variant, attention, scratch / variant))
    assert len(rows) > 25
    assert [str(row) for row in rows if not row.holds] == []


def test_a_wrong_number_fails_the_run(
    golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "STAGES", (token_tables, lambda _: [Comparison("made up", error=1.0, limit=0.5)]))
    assert command.main([str(golden), "--variant", "v1_vicuna"]) == 1
    printed = capsys.readouterr().out
    assert "made up" in printed
    assert "FAILED" in printed
    monkeypatch.setattr(command, "STAGES", (token_tables,))
    assert command.main([str(golden), "--variant", "v1_vicuna"]) == 0


# --- another set: other dimensions, names, pictures, vocabularies, counts; stages that are missing or new ---


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("other") / "set")


@pytest.mark.parametrize("name", MEMBERS)
def test_another_set_converts_and_equals_the_original(
    other: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = other / "models"
    sizes = MEMBERS[name]
    words = ["convert", "--variant", sizes.variant, "--llm", str(files / f"llm of {name}"), "--dtype", "float32"]
    words += ["--vit", str(files / "a tower.pth"), "--checkpoint", str(files / f"{name}.pth"), str(scratch / name)]
    words += ["--qformer", str(files / "queries.pth")] if sizes.qformer else []
    words += ["--vit-heads", str(sizes.heads), "--vit-depth", str(sizes.depth), "--image-size", str(sizes.image)]
    words += ["--qformer-heads", str(sizes.qformer[1])] if sizes.qformer else []
    words += ["--lora-alpha", str(sizes.lora[1])] if sizes.lora else []
    monkeypatch.setattr(sys, "argv", ["minigpt4", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    expected = json.loads((other / name / "expected.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(scratch / name)
    assert model.config.num_image_tokens == expected["image_tokens"]
    assert model.config.text_config.vocab_size == expected["llm_vocab"]
    assert AutoProcessor.from_pretrained(scratch / name).image_processor.image_size == sizes.image

    rows = {row.stage: row for row in command.compare(other, name, "sdpa", scratch / name)}
    assert [str(row) for row in rows.values() if not row.holds] == []
    seen = {"pixels, SHA-256": len(IMAGES), "prompt texts": 3, "prompt ids": 4, "greedy_rp13 ids": 4}
    assert {stage: rows[stage].total for stage in seen} == seen
    assert {"image_embeds", "logits, every position", "beam3_no_stop_strings ids"} <= rows.keys()
    # Stages that this set has no recordings of are left out.
    assert not rows.keys() & {"losses", "sampling scores", "candidate ranks"}
    assert ("batch ids" in rows) == (sizes.variant != "v2")
    assert ("beam2_short ids" in rows) == (sizes.variant != "vicuna")


def copied(other: Path, folder: Path, name: str) -> None:
    """The set once more, with one variant's recordings as files of their own."""
    for path in other.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    shutil.copytree(other / name, folder / name)


def tensor(kind: str, name: str, error: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        stages = load_file(folder / f"{kind}.safetensors")
        stages[name].view(-1)[-1] += error
        save_file(stages, folder / f"{kind}.safetensors")

    return change


def entry(*path: Any, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        whole = json.loads((folder / "expected.json").read_text())
        at = whole
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        (folder / "expected.json").write_text(json.dumps(whole))

    return change


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (tensor("vision", "image_embeds", 1e-4), ["image_embeds"]),
        (tensor("vision", "pixel_values", 1e-6), ["pixels"]),
        (tensor("vision", "pos_embed", 1e-6), ["resized positions"]),
        (tensor("language", "first.0.logits", 1e-3), ["logits, every position"]),
        (tensor("language", "cut.0.logits_last4", float("nan")), ["logits, last 4"]),
        (entry("tokenizer_table", 1, "ids", 0, value=2), ["tokenizer table"]),
        (entry("decode_table", 0, "skip_special", value="blue"), ["decode table"]),
        (entry("image_tokens", value=9), ["sizes"]),
        (entry("cases", "first", "turns", 0, "prompt", value="<Img><ImageHere></Img>"), ["prompt texts", "prompt ids"]),
        (entry("cases", "first", "turns", 1, "result", "greedy", "ids", 2, value=3), ["greedy ids"]),
        (
            entry("cases", "cut on the left", "turns", 0, "result", "beam2_short", "ids", 1, value=3),
            ["beam2_short ids"],
        ),
    ],
)
def test_one_wrong_number_is_found(
    other: Path,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    failing: list[str],
) -> None:
    name = "little_minigpt_v2"
    copied(other, tmp_path, name)
    change(tmp_path / name)
    stage = chat_answers if " ids" in failing[0] and "prompt" not in failing[0] else chat_prompts
    stages = (vision_stages, token_tables, stage)
    monkeypatch.setattr(command, "STAGES", stages)
    with torch.no_grad():
        rows = list(command.compare(tmp_path, name, "sdpa", scratch / name))
    assert [row.stage for row in rows if not row.holds][: len(failing)] == failing


def test_a_recording_unlike_the_others_fails_its_stage_only(
    other: Path, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "little_minigpt_v2"
    copied(other, tmp_path, name)
    whole = json.loads((other / name / "expected.json").read_text())
    del whole["tokenizer_table"][2]["ids"]
    whole["cases"] = {}
    (tmp_path / name / "expected.json").write_text(json.dumps(whole))
    rows = list(command.compare(tmp_path, name, "sdpa", scratch / name))
    assert [row.stage for row in rows if not row.holds] == ["token_tables: KeyError 'ids'"]
    with pytest.raises(SystemExit) as ended:
        command.main([str(tmp_path), "--variant", "v9"])
    assert ended.value.code == 2
    assert "it has little_vicuna, little_llama2_chat, little_minigpt_v2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / name)])
    assert "holds no recorded numbers" in capsys.readouterr().err
    (tmp_path / "models").unlink()
    assert command.main([str(tmp_path), "--variant", name]) == 1
    assert "can't be converted" in capsys.readouterr().out
