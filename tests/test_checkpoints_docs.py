"""docs/checkpoints.md: options exist, the table is computed, the boxes are parsed, messages are those of the code."""

import re
from pathlib import Path
from typing import Any

import pytest
from code_blocks import code_blocks
from processes import run

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_every_option_shown_is_one_of_the_command_line() -> None:
    shown = set(re.findall(r"--[a-z][a-z-]+", DOCS))
    assert len(shown) > 6
    known = "".join(run(command, "--help").stdout for command in ("convert", "serve", "doctor"))
    assert {option for option in shown if option not in known} == set()


def test_every_model_named_is_known() -> None:
    from minigpt4_serve.weights.hub import MODELS

    assert set(re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", DOCS, re.MULTILINE)) == set(MODELS)


def test_the_memory_table_is_the_computed_one() -> None:
    from minigpt4_serve.memory import gib
    from minigpt4_serve.weights.footprint import published_footprints

    rows: dict[str, list[str]] = {}
    positions: dict[str, int] = {}
    for name, kind, footprint in published_footprints():
        rows.setdefault(name, []).append(gib(footprint.weights))
        if kind == "bfloat16":
            positions[name] = footprint.kv_per_token // 1024
    assert len(rows) == len(re.findall(r"^\|.* KiB \|$", DOCS, re.MULTILINE)) > 0
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} | {positions[name]} KiB |" in DOCS


def test_a_folder_answers_in_transformers_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from minigpt4_serve.settings import TINY_MODEL

    (code,) = code_blocks(DOCS, "py")
    scope: dict[str, Any] = {}
    for shown, here in {"models/minigpt4-7b": TINY_MODEL, "photo.png": TINY_MODEL / "example.png"}.items():
        assert shown in code
        code = code.replace(shown, str(here))
    exec(compile(code, "checkpoints.md", "exec"), scope)
    assert "moon" in capsys.readouterr().out
    assert scope["model"].config.num_image_tokens == scope["processor"].num_image_tokens > 0


def test_the_settings_shown_are_read(tmp_path: Path) -> None:
    from minigpt4_serve.settings import read_serve_settings

    (block,) = code_blocks(DOCS, "yaml")
    (tmp_path / "serve.yaml").write_text(block)
    model = read_serve_settings(tmp_path / "serve.yaml", {}).model
    assert (model.quantization, model.path) == ("int4", Path("models/minigpt4-7b"))


def test_the_boxes_are_read_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = code_blocks(DOCS, "python")
    exec(compile(code, "checkpoints.md", "exec"), {})
    assert capsys.readouterr().out == code_blocks(DOCS, "text")[0]
    assert (tmp_path / "boxes.png").is_file()


def test_the_messages_of_the_table_are_those_of_the_code() -> None:
    files = [*(ROOT / "minigpt4_serve").glob("*.py"), *(ROOT / "minigpt4_serve" / "weights").glob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    shown = re.findall(r"^\| ([a-z][^|]+) \|[^|]+\|$", DOCS.split("## Troubleshooting")[1], re.MULTILINE)
    assert len(shown) >= 8
    assert [message for message in shown if message not in joined] == []
