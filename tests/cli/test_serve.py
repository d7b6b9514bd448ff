"""A running server's signals and its new settings, without the server."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
from processes import free_port
from ray import serve
from typer.testing import CliRunner

from minigpt4_serve import process_tree, serving_memory
from minigpt4_serve.cli import app, server_process, sources
from minigpt4_serve.cli import serve as serve_command
from minigpt4_serve.errors import EngineFailed, InvalidRequest
from minigpt4_serve.server.ray import local_server
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


class Watched:
    """A server whose cluster is lost at the check of this number."""

    def __init__(self, lost_at: int | None = None) -> None:
        self._lost_at = lost_at
        self.checks = 0

    def check_cluster(self) -> None:
        self.checks += 1
        if self.checks == self._lost_at:
            raise EngineFailed("A process of Ray ended.")


def test_hang_ups_are_kept_until_waited_for() -> None:
    assert threading.current_thread() is threading.main_thread()
    hang_ups = server_process.HangUps(Watched())  # type: ignore[arg-type]
    server_process.handle_stop_signals()
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


def test_a_lost_cluster_ends_the_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed: list[str] = []
    monkeypatch.setattr(server_process, "_CHECK_S", 0.01)
    monkeypatch.setattr(process_tree, "kill_descendants", lambda: killed.append("descendants"))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        server_process.HangUps(Watched(lost_at=3)).wait()  # type: ignore[arg-type]
    assert ended.value.code == 1
    assert killed == ["descendants"]
    assert capsys.readouterr().err == "minigpt4: A process of Ray ended.\n"


class Node:
    """Ray's node, with the processes that have ended."""

    def __init__(self, *ended: str) -> None:
        self._ended = [(name, None) for name in ended]

    def dead_processes(self) -> list[tuple[str, None]]:
        return self._ended


class Stopped:
    """A shared socket that may be drained."""

    drained = False

    def drain(self, *_: object) -> None:
        self.drained = True

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("ended", "lost"),
    [
        ((), False),
        (("log_monitor", "monitor", "dashboard"), False),
        (("raylet",), True),
        (("log_monitor", "gcs_server"), True),
    ],
)
def test_the_server_ends_with_its_raylet_or_gcs(
    ended: tuple[str, ...], lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LocalServer(read_serve_settings(None, {}))
    monkeypatch.setattr(ray._private.worker, "_global_node", Node(*ended))
    killed: list[object] = []
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.kill_descendants", lambda **_: killed.append(1))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "shutdown", lambda: None)
    if lost:
        with pytest.raises(EngineFailed, match=ended[-1]):
            server.check_cluster()
    else:
        server.check_cluster()
    server._socket = Stopped()  # type: ignore[assignment]
    server.stop()
    assert bool(killed) is lost
    assert server._socket.drained is not lost  # type: ignore[attr-defined]


def test_a_start_that_takes_too_long_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.provide_token", lambda _: None)
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.configure_logging", lambda *_: None)
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.kill_descendants", lambda **_: None)
    monkeypatch.setattr(LocalServer, "_open_sockets", lambda *_: None)
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "start", lambda **_: threading.Event().wait(60))
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(EngineFailed, match=r"within 0.2 s \(start_timeout_s\)"):
        server_process.start_server(read_serve_settings(None, {"start_timeout_s": 0.2, "port": free_port()}))
    assert list(tmp_path.iterdir()) == [], "Ray has left no logs"
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_stop_signal_kills_at_once(
    number: signal.Signals, second: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(process_tree, "kill_descendants", lambda: killed.append("descendants"))
    monkeypatch.setattr(os, "_exit", killed.append)
    server_process.handle_stop_signals()
    with pytest.raises(SystemExit) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.code == 128 + number
    assert not killed
    os.kill(os.getpid(), second)
    assert killed == ["descendants", 128 + second]


def _roll_over(file: Path | None = None) -> None:
    settings = read_serve_settings(None, {})
    serve_command._roll_over(LocalServer(settings), settings, file, {})


def test_stop_signal_ends_a_roll_over(monkeypatch: pytest.MonkeyPatch) -> None:
    server_process.handle_stop_signals()
    monkeypatch.setattr(LocalServer, "deploy", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        _roll_over()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_start_kills_what_was_started(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray installs a SIGTERM handler of its own; ours is back before the application is deployed."""
    calls: list[str] = []
    signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP

    def init(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: calls.append("Ray's handler"))

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(process_tree, "kill_descendants", lambda: calls.append("killed"))
    monkeypatch.setattr(LocalServer, "_open_sockets", lambda *_: None)
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.provide_token", lambda _: None)
    monkeypatch.setattr("minigpt4_serve.server.ray.local_server.configure_logging", lambda *_: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(LocalServer, "deploy", lambda *_: os.kill(os.getpid(), number))
    monkeypatch.setattr(LocalServer, "stop", lambda _: calls.append("stop"))
    with pytest.raises(SystemExit) as stopped:
        server_process.start_server(read_serve_settings(None, {"port": free_port()}))
    assert stopped.value.code == 128 + number
    assert calls[0] == "killed"
    assert "Ray's handler" not in calls


def test_ray_is_not_started_for_a_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "_start_cluster", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr(serving_memory, "available_memory", lambda: 2**20)
    monkeypatch.setattr(serving_memory, "_gpu_devices", lambda: iter(()))
    with pytest.raises(InvalidRequest, match=r"1\.0 MiB are available"):
        LocalServer(read_serve_settings(None, {})).start()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 9001", "Changing 'port' requires a restart."),
        ("host: localhost", "Changing 'host' requires a restart."),
        ("metrics_port: 9002", "Changing 'metrics_port' requires a restart."),
        ("model: {path: none}", "is not a model folder"),
        ("keys_file: none.json", "none.json"),
        ("prot: 1", "there is no such setting"),
    ],
)
def test_invalid_settings_replace_no_process(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalServer, "deploy", lambda *_: pytest.fail("a process was replaced"))
    (file := tmp_path / "serve.yaml").write_text(text)
    _roll_over(file)
    printed = capsys.readouterr().err
    assert message in printed
    assert "Keeping the current settings." in printed


def test_errors_while_loading_ask_for_another_sighup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise EngineFailed("The model does not fit.")

    monkeypatch.setattr(LocalServer, "deploy", fails)
    _roll_over()
    printed = capsys.readouterr().err
    assert "The model does not fit. Correct the settings and send SIGHUP again." in printed


def test_options_that_may_be_given_several_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model_name: other\nallowed_hosts: ['*']\n")
    started: list[Any] = []

    def start(settings: Any) -> None:
        started.append(settings)
        raise EngineFailed("enough")

    monkeypatch.setattr(server_process, "start_server", start)
    for options in (
        ["--model-name", "a", "--model-name", "gpt-4o", "--allow-host", "x.example", "--allow-host", "y.example"],
        [],
    ):
        CliRunner().invoke(app, ["serve", "--config", str(file), *options])
    assert [settings.model_names for settings in started] == [("a", "gpt-4o"), ("other",)]
    assert [settings.allowed_hosts for settings in started] == [("x.example", "y.example"), ("*",)]


@pytest.mark.parametrize(
    ("home", "given", "folder"),
    [
        ("{home}", None, None),
        ("/nonexistent", None, "{server}/triton"),
        ("/dev/null/home", None, "{server}/triton"),
        ("/nonexistent", "/elsewhere", "/elsewhere"),
    ],
)
def test_kernels_are_kept_where_home_cannot_be_written(
    home: str, given: str | None, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home.format(home=tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", given or "")
    if given is None:
        monkeypatch.delenv("TRITON_CACHE_DIR")
    local_server._replace_unwritable_home(tmp_path)
    assert os.environ.get("TRITON_CACHE_DIR") == (folder and folder.format(server=tmp_path))


@pytest.mark.parametrize("count", [1, 3])
def test_a_stop_says_how_many_answers_it_finishes(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    class Stopping:
        def stop(self, *, on_answers: Callable[[int], None]) -> None:
            on_answers(count)

    server_process.stop_server(Stopping())  # type: ignore[arg-type]
    words = "1 answer" if count == 1 else "3 answers"
    assert capsys.readouterr().out == f"Stopping …\nFinishing {words}; Ctrl-C again stops at once.\n"


class Running:
    """A server that counts how often it is stopped, with one answer to finish."""

    stops = 0

    def stop(self, *, on_answers: Callable[[int], None]) -> None:
        on_answers(1)
        self.stops += 1


def test_a_server_stops_though_its_output_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    server = Running()
    monkeypatch.setattr(server_process, "start_server", lambda _: server)
    monkeypatch.setattr(typer, "echo", closed)
    settings = read_serve_settings(None, {})
    with pytest.raises(BrokenPipeError):
        serve_command.run_server(settings, None, {}, on_ready=closed)
    assert server.stops == 1


def test_a_demo_that_cannot_ask_stops_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise InvalidRequest("The environment variable SSL_CERT_FILE can't be used.")

    server = Running()
    monkeypatch.setattr(server_process, "start_server", lambda _: server)
    monkeypatch.setattr(sources, "RemoteModel", refuse)
    assert isinstance(CliRunner().invoke(app, ["demo"]).exception, InvalidRequest)
    assert server.stops == 1


def test_nothing_of_ray_is_written_to_stdout_at_exit() -> None:
    """Colorama, which Ray brings, would reset the terminal's colors."""
    code = (
        "import ray, colorama; from minigpt4_serve.server.ray.local_server import LocalServer\n"
        "from minigpt4_serve.settings import ServeSettings\n"
        "colorama.init(strip=False); LocalServer(ServeSettings()).stop()"
    )
    terminal, stdout = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        subprocess.run([sys.executable, "-c", code], stdout=stdout, timeout=280, check=True)
        os.write(stdout, b"end")
        os.close(stdout)
        assert shown.read(100) == b"end"
