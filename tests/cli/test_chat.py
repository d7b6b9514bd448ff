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


class Scripted:
    """A source that fails at some questions."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def answer(self, messages: list[dict[str, Any]], **_: Any) -> Generator[Event]:
        words = [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in messages]
        self.asked.append(words)
        if words[-1] == "long":
            raise ContextLengthExceeded("This is too long.")
        if words[-1] == "stopped":
            raise KeyboardInterrupt
        yield TextDelta(f"about {words[-1]}")
        yield Completed("stop")

    def close(self) -> None:
        self.asked.append(["closed"])


def test_a_chat_goes_on_after_a_failed_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "red.png"
    picture.write_bytes(encode(draw("red")))
    source = Scripted()
    monkeypatch.setattr(sources, "open_source", lambda *_: source)
    done = CliRunner().invoke(app, ["chat", str(picture)], input="first\nlong\nstopped\nlast\n\n")
    assert done.exit_code == 0, done.output
    assert "minigpt4: This is too long." in done.output
    assert source.asked == [
        ["first"],
        ["first", "about first", "long"],
        ["first", "about first", "stopped"],
        ["first", "about first", "stopped", "", "last"],
        ["closed"],
    ]
