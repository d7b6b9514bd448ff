import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawing import draw

from minigpt4_serve.cli import diagnosis
from minigpt4_serve.cli.diagnosis import Finding, examine, memory_table
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.footprint import footprint, published_config
from minigpt4_serve.weights.reader import sha256

GIB = 2**30


@pytest.fixture
def folder(small_model: tuple, tmp_path: Path) -> Path:
    model, processor = small_model
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    draw("red").save(tmp_path / "example.png")
    stored = {"image": "example.png", "question": "What colour?", "answer": "?"}
    (tmp_path / "selftest.json").write_text(json.dumps(stored))
    return tmp_path


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine(ModelSettings(path=folder, device="cpu"))}


def test_a_sound_folder(folder: Path) -> None:
    assert findings(folder)["self-test"].state == "problem"
    answer = diagnosis._ask(ModelSettings(path=folder, device="cpu"), draw("red"), "What colour?")
    stored = json.loads((folder / "selftest.json").read_text())
    (folder / "selftest.json").write_text(json.dumps({**stored, "answer": answer}))
    digest = sha256(folder / "model.safetensors")
    (folder / "sources.json").write_text(json.dumps({"outputs": {"model.safetensors": digest}}))
    found = findings(folder)
    assert [f for f in found.values() if f.state == "problem"] == []
    assert torch.__version__.startswith(found["torch"].text)
    assert "as converted" in found["model.safetensors"].text
    assert found["self-test"].text.endswith(f"→ {answer}")


def test_problems_are_reported(folder: Path) -> None:
    (folder / "sources.json").write_text(json.dumps({"outputs": {"model.safetensors": "0" * 64}}))
    (folder / "example.png").unlink()
    found = findings(folder)
    assert found["model.safetensors"].state == "problem"
    assert found["self-test"].state == "problem"
    (folder / "sources.json").write_text('{"outputs": 5}')
    draw("red").save(folder / "example.png")
    (folder / "selftest.json").write_text('{"image": "example.png", "question": "What colour?"}')
    found = findings(folder)
    assert "recorded" not in found["model.safetensors"].text
    assert "damaged" in found["self-test"].text
    (folder / "selftest.json").unlink()
    assert findings(folder)["self-test"].state == "note"
    (folder / "model.safetensors").unlink()
    assert findings(folder)["model"].state == "problem"


@pytest.mark.parametrize(
    ("sources", "selftest"),
    [
        ("[]", "[]"),
        ("[" * 100_000, "[" * 100_000),
        ('{"outputs": 5}', '{"image": 5}'),
        ("", '{"image": "selftest.json"}'),
    ],
)
def test_damaged_records_are_findings(folder: Path, sources: str, selftest: str) -> None:
    (folder / "sources.json").write_text(sources)
    (folder / "selftest.json").write_text(selftest)
    found = findings(folder)
    assert found["self-test"].state == "problem"
    assert found["model.safetensors"].state == "ok"


def test_reported_memory_is_that_of_the_loaded_dtype(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "selftest.json").unlink()
    assert "as float32" in findings(folder)["memory"].text
    monkeypatch.setattr(diagnosis, "resolve_device", lambda _: torch.device("cuda"))
    assert "as bfloat16" in {f.topic: f for f in diagnosis.model(ModelSettings(path=folder))}["memory"].text


def test_a_model_that_does_not_fit_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.serving_memory.available_memory", lambda: 2**10)
    found = findings(folder)
    assert found["fits"].state == "problem"
    assert "are available" in found["fits"].text
    assert "self-test" not in found


def test_memory_of_the_published_models() -> None:
    seven = published_config("vicuna-7b")
    thirteen = published_config("vicuna-13b")
    assert footprint(seven, "bfloat16").weights / GIB == pytest.approx(14.6, abs=0.1)
    assert footprint(seven, "float32").weights == 2 * footprint(seven, "float16").weights
    assert footprint(seven, "int8").weights / GIB == pytest.approx(8.55, abs=0.1)
    assert footprint(seven, "int4").weights / GIB == pytest.approx(5.9, abs=0.1)
    assert footprint(thirteen, "bfloat16").weights / GIB == pytest.approx(26.3, abs=0.1)
    assert footprint(seven, "bfloat16").kv_per_token == 512 * 1024
    assert footprint(published_config("v2-7b"), "int4").context == 4096


def test_what_fits_is_said_for_every_model_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    header, *rows = memory_table(24 * GIB)
    assert header[-1] == "in 24.0 GiB"
    assert len(rows) == 16
    fits = {(model, kind): text for model, kind, _, _, text in rows}
    assert fits["vicuna-13b", "bfloat16"] == "does not fit"
    assert fits["vicuna-7b", "bfloat16"] == "8 full chats"
    monkeypatch.setattr(diagnosis, "available_memory", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {row[-1] for row in memory_table()[1:]} == {"does not fit"}


def _sysconf(name: str) -> int:
    return {"SC_PHYS_PAGES": 24 * GIB // 16384, "SC_PAGE_SIZE": 16384}[name]


def _no_sysconf(name: str) -> int:
    raise ValueError(name)


@pytest.mark.parametrize(
    ("sysconf", "cpu", "header", "fits"),
    [
        (_sysconf, "24.0 GiB in all", "in 24.0 GiB", "8 full chats"),
        (_no_sysconf, "memory unknown", "here", "unknown"),
        (lambda _: -1, "memory unknown", "here", "unknown"),
        (None, "memory unknown", "here", "unknown"),
    ],
    ids=["macOS", "unknown names", "no answer", "Windows"],
)
def test_memory_where_there_is_no_meminfo(
    sysconf: Callable[[str], int] | None,
    cpu: str,
    header: str,
    fits: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(diagnosis, "available_memory", lambda: None)
    if sysconf is None:
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", sysconf)
    found = next(finding for finding in diagnosis.devices() if finding.topic == "cpu")
    assert found.text.endswith(f"cores, {cpu}")
    head, *rows = memory_table()
    assert head[-1] == header
    assert next(row[-1] for row in rows if row[:2] == ["vicuna-7b", "bfloat16"]) == fits
