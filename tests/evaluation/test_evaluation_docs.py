"""The commands of docs/evaluation.md do what the page says."""

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
from code_blocks import code_blocks
from drawing import draw, encode
from drawn_data import write_drawn_data
from fakes.openai_replies import Reply
from fakes.openai_server import vision_server

from minigpt4_serve.cli import app
from minigpt4_serve.evaluation import TASKS
from minigpt4_serve.settings import TINY_MODEL

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def _run(line: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line.replace("http://127.0.0.1:8000", server), comments=True)
    if words[:2] == ["python", "-m"]:
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:], "--each", "1"])
        import_module(words[2]).main()
        return
    assert words[0] == "minigpt4", line
    app(words[1:], standalone_mode=False)  # main would end this process after a model has run in it


def test_commands_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT4_API_KEY", "")
    write_drawn_data("pope", tmp_path / "coco", 2)
    write_drawn_data("chair", tmp_path / "coco", 2)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "minigpt-v2").symlink_to(TINY_MODEL)
    for name in ("meme", "recipe", "advertisement", "poem"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "1.png").write_bytes(encode(draw()))
    commands = "".join(code_blocks(PAGE, "bash")).replace("\\\n", " ").splitlines()
    with vision_server(default=Reply("Yes.")) as server:
        for run in ("float32", "int8"):  # what the page compares
            _run(f"minigpt4 evaluate pope --data coco --server {server.origin} --output runs/{run}", "", monkeypatch)
        for line in commands:
            if not line.startswith("pip "):
                _run(line, server.origin, monkeypatch)
    reports = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/report.json")}
    assert set(reports) == {"float32", "int8", "pope", "pope-local", "chair-long", "scenes"}
    assert not any(report["failed"] for report in reports.values())
    assert (tmp_path / "runs" / "creative" / "sheet.html").is_file()


def test_the_page_lists_every_task_and_its_files() -> None:
    rows = re.findall(r"^\| `([^`]+)`[^|]*\|[^|\n]*\|[^|\n]*\|[^|\n]*\|$", PAGE, re.MULTILINE)
    assert set(TASKS) - {"refcoco+", "refcocog"} <= set(rows)
