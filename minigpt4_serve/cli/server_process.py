"""Starting and stopping the server from a command, and the signals that stop it."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import typer

from minigpt4_serve.cli.console import Step, end_interrupted_line
from minigpt4_serve.entry_point import EXIT_BY_SIGNAL
from minigpt4_serve.errors import EngineFailed

if TYPE_CHECKING:
    from minigpt4_serve.server.ray.local_server import LocalServer
    from minigpt4_serve.settings import ServeSettings

__all__ = [
    "HangUps",
    "StopSignal",
    "handle_stop_signals",
    "running_server",
    "server_url",
    "start_server",
    "stop_server",
]

_CHECK_S = 2.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal(SystemExit):
    """SIGTERM or Ctrl-C; if nothing catches it, the process exits with the signal's code."""


def server_url(settings: "ServeSettings") -> str:
    """The server's address without ``/v1``."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


@contextmanager
def running_server(settings: "ServeSettings") -> Iterator["LocalServer"]:
    """Run a server during the block, and stop it however the block ends. In it stop signals raise ``StopSignal``.

    Raises:
        MiniGPT4Error: as ``start_server``.
    """
    server = start_server(settings)
    try:
        handle_stop_signals()
        yield server
    finally:
        stop_server(server)


def start_server(settings: "ServeSettings") -> "LocalServer":
    """Start a server and return when it answers.

    While it starts there is no answer to finish: a signal ends this process and all that it started at once, SIGHUP of
    a closed terminal included.

    Raises:
        MiniGPT4Error: the server can't start; what can be checked at once is checked before Ray is imported.
    """
    from minigpt4_serve.server.start_checks import check_start

    check_start(settings)
    _set_handlers(_kill_all, (*_STOP_SIGNALS, signal.SIGHUP))
    with ExitStack() as step:

        def begin(what: str) -> None:
            step.pop_all().close()
            step.enter_context(Step(what))

        begin("importing Ray")
        from minigpt4_serve.server.ray.local_server import LocalServer

        server = LocalServer(settings)
        server.start(on_progress=begin)
    return server


def stop_server(server: "LocalServer") -> None:
    """Finish the running answers, then stop; a second signal kills all processes at once."""
    _set_handlers(_kill_all)
    try:
        typer.echo("Stopping …")
    finally:  # also if the reader of the output is gone
        server.stop(on_answers=_show_answers)


def _show_answers(count: int) -> None:
    with suppress(OSError):  # the reader of the output is gone; the answers are finished nevertheless
        typer.echo(f"Finishing {count} {'answer' if count == 1 else 'answers'}; Ctrl-C again stops at once.")


def handle_stop_signals() -> None:
    """SIGTERM and Ctrl-C raise ``StopSignal``; a second one kills this process and all that it started."""
    _set_handlers(_raise_stop_signal)


def _set_handlers(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[signal.Signals] = _STOP_SIGNALS
) -> None:
    for number in numbers:
        # Shells make background processes ignore Ctrl-C, nohup makes its command ignore SIGHUP.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _raise_stop_signal(number: int, _: FrameType | None) -> None:
    _set_handlers(_kill_all)
    raise StopSignal(EXIT_BY_SIGNAL + number)


def _kill_all(number: int, _: FrameType | None) -> None:
    end_interrupted_line()
    _end(EXIT_BY_SIGNAL + number)


def _end(code: int) -> None:
    """Kill all processes that this one started, and end it."""
    from minigpt4_serve.process_tree import kill_descendants

    kill_descendants()
    os._exit(code)  # Ray's exit handlers would wait for the killed processes


class HangUps:
    """SIGHUPs, counted until they are waited for: one that arrives during a roll-over isn't lost.

    While they are waited for, a server whose cluster is lost ends this process with exit code 1.
    """

    def __init__(self, server: "LocalServer") -> None:
        self._received = 0
        self._server = server
        signal.signal(signal.SIGHUP, self._receive)

    def _receive(self, _: int, __: FrameType | None) -> None:
        self._received += 1

    def wait(self) -> None:
        """Return after the next one."""
        next_check = time.monotonic() + _CHECK_S
        while not self._received:
            time.sleep(0.2)
            if time.monotonic() >= next_check:
                self._end_if_lost()
                next_check = time.monotonic() + _CHECK_S
        self._received -= 1

    def _end_if_lost(self) -> None:
        try:
            self._server.check_cluster()
        except EngineFailed as error:
            typer.echo(f"minigpt4: {error.message}", err=True)
            _end(1)
