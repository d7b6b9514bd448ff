"""A running server's signals and its new settings, without the server."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from minigpt4_serve import cli, process_tree
from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server.ray.local_server import LocalServer
from minigpt4_serve.settings import read_serve_settings

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The test process's own signal handlers are put back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_hang_ups_are_kept_until_waited_for() -> None:
    assert threading.current_thread() is threading.main_thread()
    hang_ups = cli._HangUps()
    cli._handle_stop_signals(cli._raise_stop_signal)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
    hang_ups.wait()
    hang_ups.wait()
    alarm = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.start()
    try:
        with pytest.raises(SystemExit):  # a third was not received
            hang_ups.wait()
    finally:
        alarm.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_stop_signal_kills_at_once(
    number: signal.Signals, second: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(process_tree, "kill_descendants", lambda: killed.append("descendants"))
    monkeypatch.setattr(os, "_exit", killed.append)
    cli._handle_stop_signals(cli._raise_stop_signal)
    with pytest.raises(SystemExit) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.code == 128 + number
    assert not killed
    os.kill(os.getpid(), second)
    assert killed == ["descendants", 128 + second]


def _roll_over(file: Path | None = None) -> None:
    settings = read_serve_settings(None, {})
    cli._roll_over(LocalServer(settings), settings, file, {})


def test_stop_signal_ends_a_roll_over(monkeypatch: pytest.MonkeyPatch) -> None:
    cli._handle_stop_signals(cli._raise_stop_signal)
    monkeypatch.setattr(LocalServer, "deploy", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        _roll_over()


def test_signals_during_the_start_stop_what_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray installs a SIGTERM handler of its own; ours is back before the application is deployed."""
    calls: list[str] = []

    def init(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: calls.append("Ray's handler"))

    monkeypatch.setattr(LocalServer, "_open_sockets", lambda _: None)
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.protect_token", lambda: None)
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.configure_logging", lambda *_: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(LocalServer, "deploy", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(LocalServer, "stop", lambda _: calls.append("stop"))
    with pytest.raises(SystemExit) as stopped:
        cli._start_server(read_serve_settings(None, {}))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert calls == ["stop"]


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
    monkeypatch.setattr(LocalServer, "deploy", lambda *_: pytest.fail("a process was replaced"))
    (file := tmp_path / "serve.yaml").write_text(text)
    _roll_over(file)
    printed = capsys.readouterr().err
    assert message in printed
    assert "The server goes on as it was." in printed


def test_what_shows_only_while_loading_is_said_without_a_promise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise EngineFailed("The model does not fit.")

    monkeypatch.setattr(LocalServer, "deploy", fails)
    _roll_over()
    printed = capsys.readouterr().err
    assert "The model does not fit. Correct the settings and send SIGHUP again." in printed
