"""The command line as a separate process, the way people run it."""

import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from waiting import wait_until

from minigpt4_serve.process_tree import descendants

MINIGPT4 = str(Path(sys.executable).with_name("minigpt4"))


def _ports() -> Iterator[int]:
    """Ports for this process to try, each one once; other processes of the same test run have other ports.

    All are below 32768, where the ports begin that the system assigns: it could assign one of those to a connection
    before the process that is meant to listen there does.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(20_000 + worker, 32_000, workers)
    yield from random.sample(own, len(own))


_untried = _ports()


def free_port() -> int:
    """A port on loopback that is free now, and that no other call returns."""
    for port in _untried:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def run(
    *words: str, timeout: float = 280, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``minigpt4 WORDS`` to its end."""
    return subprocess.run(
        [MINIGPT4, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        input=stdin,
        env={**os.environ, **environment},
        check=False,
    )


@dataclass
class Server:
    """A running ``minigpt4 serve``.

    Attributes:
        url: without ``/v1``.
        metrics_port: of Ray's metrics, 0 if the settings name none.
    """

    url: str
    process: "subprocess.Popen[str]"
    lines: "queue.Queue[str]"
    metrics_port: int = 0

    def wait_for(self, beginning: str, timeout: float) -> None:
        """Wait until it prints a line that begins with ``beginning``.

        Raises:
            AssertionError: it ended, or printed nothing for ``timeout`` seconds.
        """
        printed = []
        while not (printed and printed[-1].startswith(beginning)):
            try:
                printed.append(self.lines.get(timeout=timeout))
            except queue.Empty:
                raise AssertionError(f"no {beginning!r} after {timeout} s; it printed: {''.join(printed)}") from None
            if printed[-1] == "":
                raise AssertionError(f"the server ended; it printed: {''.join(printed)}")

    def replicas(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas."""
        return self.workers(f"ServeReplica:minigpt4:{deployment}")

    async def until_replaced(self, deployment: str, old: Collection[int], within_s: float = 240) -> None:
        """Wait until none of a deployment's replicas is one of ``old``, and there is another.

        Old ones finish their answers and may end shortly after the new ones answer.
        """

        def replaced() -> bool:
            replicas = self.replicas(deployment)
            return bool(replicas) and not set(old) & set(replicas)

        await wait_until(replaced, within_s, every_s=0.2)

    def folder(self) -> Path:
        """Of the server's files: where its raylet's session is."""
        for pid in descendants(self.process.pid):
            if found := re.search(r"--raylet_socket_name=(.*?)/ray/session_", _title(pid)):
                return Path(found[1])
        raise AssertionError("no raylet runs")

    def workers(self, title: str) -> list[int]:
        """Process ids of Ray's workers whose title begins with ``title``, such as an actor's class."""
        title = f"ray::{title}"
        return [pid for pid in descendants(self.process.pid) if _title(pid).startswith(title)]


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


@contextmanager
def running_server(*words: str, timeout: float = 420, **environment: str) -> Iterator[str]:
    """``minigpt4 serve`` on a free port; yields its address once it is ready, and stops it by Ctrl-C."""
    with serving(*words, timeout=timeout, **environment) as server:
        yield server.url


@contextmanager
def serving(*words: str, timeout: float = 420, open_files: int | None = None, **environment: str) -> Iterator[Server]:
    """Like ``running_server``, for tests that signal or inspect its processes; each may open ``open_files``."""
    port = free_port()
    with _started("serve", "--port", str(port), *words, open_files=open_files, **environment) as (process, lines):
        server = Server(f"http://127.0.0.1:{port}", process, lines)
        server.wait_for("Ready", timeout)
        yield server


@contextmanager
def running(
    *words: str, ready: str, timeout: float = 420, folder: Path | None = None, **environment: str
) -> Iterator[list[str]]:
    """``minigpt4 WORDS`` from the line that begins with ``ready`` until Ctrl-C ends it; yields the lines so far.

    More lines are added when it ends.
    """
    printed: list[str] = []
    with _started(*words, folder=folder, **environment) as (_, lines):
        while not (printed and printed[-1].startswith(ready)):
            try:
                printed.append(lines.get(timeout=timeout))
            except queue.Empty:
                raise AssertionError(f"it isn't ready after {timeout} s; it printed: {''.join(printed)}") from None
            if printed[-1] == "":
                raise AssertionError(f"it ended; it printed: {''.join(printed)}")
        yield printed
    while not lines.empty():
        printed.append(lines.get())


@contextmanager
def _started(
    *words: str, folder: Path | None = None, open_files: int | None = None, **environment: str
) -> Iterator[tuple["subprocess.Popen[str]", "queue.Queue[str]"]]:
    """Yields a process and the lines that it prints; stops it by Ctrl-C."""
    limited = [] if open_files is None else ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh"]
    process = subprocess.Popen(
        [*limited, MINIGPT4, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_inherited() | environment,
        cwd=folder,
        start_new_session=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=_follow, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=150)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(timeout=60)
        process.stdout.close()


def _inherited() -> dict[str, str]:
    """This process's environment for a command that starts Ray, which isn't measured by coverage.

    Ray ends its workers without Python's exit handlers: measured ones would be slower and write no data.
    """
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}


def _follow(stream: object, lines: "queue.Queue[str]") -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put(line)
    lines.put("")
