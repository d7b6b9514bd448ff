"""``minigpt4 chat`` as a conversation on a terminal."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from typer.testing import CliRunner

from minigpt4_serve.cli import app, sources
from minigpt4_serve.client import Completed, Event, TextDelta
from minigpt4_serve.errors import ContextLengthExceeded


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


class Scripted:
    """A source that fails at some questions, and is stopped by Ctrl-C at others."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.images: list[int] = []

    def answer(self, messages: list[dict[str, Any]], **_: Any) -> Generator[Event]:
        words = [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in messages]
        self.asked.append(words)
        self.images.append(sum(part["type"] == "image_url" for m in messages for part in _parts(m)))
        if words[-1] == "long":
            raise ContextLengthExceeded("This is too long.")
        if words[-1] == "stopped at once":
            raise KeyboardInterrupt
        yield TextDelta(f"about {words[-1]}")
        if words[-1] == "stopped":
            raise KeyboardInterrupt
        yield Completed("stop")

    def close(self) -> None:
        self.asked.append(["closed"])


def test_a_chat_goes_on_after_failed_and_stopped_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "red.png"
    picture.write_bytes(encode(draw("red")))
    source = Scripted()
    monkeypatch.setattr(sources, "open_source", lambda *_: source)
    done = CliRunner().invoke(app, ["chat", str(picture)], input="stopped at once\nfirst\nlong\nstopped\nlast\n\n")
    assert done.exit_code == 0, done.output
    assert "minigpt4: This is too long." in done.output
    assert source.asked == [
        ["stopped at once"],
        ["first"],
        ["first", "about first", "long"],
        ["first", "about first", "stopped"],
        ["first", "about first", "stopped", "about stopped", "last"],
        ["closed"],
    ]
    assert source.images == [1, 1, 1, 1, 1]
