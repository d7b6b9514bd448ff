"""``minigpt4 web`` and the signals that stop it."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import MINIGPT4
from typer.testing import CliRunner

from minigpt4_serve import web as page
from minigpt4_serve.cli import app


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The test process's own signal handlers are put back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_web_with_a_server_installs_the_stop_handlers(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve_page(settings: Any, listening: socket.socket, *, on_ready: Callable[[str], None]) -> None:
        on_ready("http://page")
        os.kill(os.getpid(), number)
        pytest.fail("the signal didn't stop the page")

    monkeypatch.setattr(page, "serve_page", serve_page)
    done = CliRunner().invoke(app, ["web", "--server", "http://127.0.0.1:1", "--port", "0"])
    assert done.exit_code == 0, done.output
    assert "Open http://page" in done.output


def test_the_model_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(page, "serve_page", lambda settings, _, on_ready: asked.append(settings.model))
    monkeypatch.setenv("MINIGPT4_MODEL", "theirs")
    CliRunner().invoke(app, ["web", "--server", "http://127.0.0.1:1", "--port", "0"])
    assert asked == ["theirs"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_page_process_in_order(number: signal.Signals) -> None:
    command = [MINIGPT4, "web", "--server", "http://127.0.0.1:1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("Open http://127.0.0.1:")
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "Traceback" not in errors
