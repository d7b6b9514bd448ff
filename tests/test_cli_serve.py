"""A running server's signals and its new settings, without the server."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from minigpt4_serve import cli
from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.serving import app
from minigpt4_serve.settings import read_serve_settings

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


@pytest.fixture
def signals() -> Any:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield cli._Signals()
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_what_comes_while_nobody_waits_is_kept_in_order(signals: Any) -> None:
    assert threading.current_thread() is threading.main_thread()
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert [signals.wait() for _ in range(3)] == [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 9001", "A new 'port' needs a new start."),
        ("host: localhost", "A new 'host' needs a new start."),
        ("metrics_port: 9002", "A new 'metrics_port' needs a new start."),
        ("model: {path: none}", "is not a model folder"),
        ("keys_file: none.json", "none.json"),
        ("prot: 1", "there is no such setting"),
    ],
)
def test_settings_that_are_seen_to_be_wrong_replace_no_process(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "deploy", lambda settings: pytest.fail("a process was replaced"))
    (file := tmp_path / "serve.yaml").write_text(text)
    cli._roll_over(read_serve_settings(None, {}), file, {})
    printed = capsys.readouterr().err
    assert message in printed
    assert "The server goes on as it was." in printed


def test_what_shows_only_while_loading_is_said_without_a_promise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(settings: Any) -> None:
        raise EngineFailed("The model does not fit.")

    monkeypatch.setattr(app, "deploy", fails)
    cli._roll_over(read_serve_settings(None, {}), None, {})
    printed = capsys.readouterr().err
    assert "The model does not fit. Correct the settings and send SIGHUP again." in printed
