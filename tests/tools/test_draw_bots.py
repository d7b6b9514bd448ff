"""The documentation's pictures of the bots: painted by ``tools.draw_bots`` from what ``record_bots.py`` records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tools import draw_bots
from tools.draw_bots import Message

ROOT = Path(__file__).parents[2]
ANSWERS = ("A red circle and a green square on a white background.", "The green square is at the middle right.")


def recorded(mention: str) -> list[dict[str, object]]:
    """The conversation that the documentation shows."""
    messages: list[dict[str, object]] = []
    for number, (question, answer) in enumerate(zip(draw_bots.QUESTIONS, ANSWERS, strict=True)):
        messages.append({"text": question if number else mention + question, "by_bot": False, "button": ""})
        messages.append({"text": answer, "by_bot": True, "button": "🔄 Regenerate"})
    return messages


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for the recorder; its commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with Image.open(command[2]) as image:
            assert image.size == (360, 270)
        printed = json.dumps({"discord": recorded("@eyes "), "telegram": recorded("")})
        return subprocess.CompletedProcess(command, 0, printed)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize("name", ["discord.png", "telegram.png"])
def test_docs_show_what_is_painted(recorder: list[list[str]], tmp_path: Path, name: str) -> None:
    assert draw_bots.main([str(tmp_path)]) == 0
    assert recorder[0][3:] == list(draw_bots.QUESTIONS)
    with Image.open(tmp_path / name) as painted, Image.open(ROOT / "docs" / name) as shown:
        assert painted.size == shown.size
        assert max(ImageStat.Stat(ImageChops.difference(painted, shown)).mean) < 1  # fonts may be hinted differently


def test_painted_pictures_grow_with_the_conversation() -> None:
    messages = [Message("A question?", by_bot=False), Message("An answer.", by_bot=True, button="🔄 Regenerate")]
    for paint in (draw_bots.paint_discord, draw_bots.paint_telegram):
        assert paint(messages[:1]).height < paint(messages).height < paint(messages * 2).height
        long = Message("word " * 100, by_bot=True)
        assert paint([long]).height > paint(messages).height


def test_the_recorder_finds_the_fakes_without_a_path() -> None:
    command = [sys.executable, str(ROOT / "tests" / "record_bots.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "IMAGE" in done.stdout or "image" in done.stdout
