"""The real command line as a process of its own, as people run it."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MINIGPT4 = str(Path(sys.executable).with_name("minigpt4"))


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    *words: str, timeout: float = 120, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``minigpt4 WORDS`` to its end."""
    return subprocess.run(
        [MINIGPT4, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        input=stdin,
        env={**os.environ, **environment},
        check=False,
    )


@contextmanager
def running_server(*words: str, timeout: float = 240, **environment: str) -> Iterator[str]:
    """``minigpt4 serve`` on a free port; yields its address when it says that it is ready, stops it by Ctrl-C."""
    port = free_port()
    with running("serve", "--port", str(port), *words, ready="Ready", timeout=timeout, **environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running(
    *words: str, ready: str, timeout: float = 240, folder: Path | None = None, **environment: str
) -> Iterator[list[str]]:
    """``minigpt4 WORDS`` from the line that begins with ``ready`` until Ctrl-C ends it; yields the lines so far.

    More lines are added while it ends.
    """
    process = subprocess.Popen(
        [MINIGPT4, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        cwd=folder,
        start_new_session=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=_follow, args=(process.stdout, lines), daemon=True)
    reader.start()
    printed: list[str] = []
    try:
        while not (printed and printed[-1].startswith(ready)):
            try:
                printed.append(lines.get(timeout=timeout))
            except queue.Empty:
                raise AssertionError(f"it isn't ready after {timeout} s; it printed: {''.join(printed)}") from None
            if printed[-1] == "":
                raise AssertionError(f"it ended; it printed: {''.join(printed)}")
        yield printed
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(timeout=5)
        process.stdout.close()
        while not lines.empty():
            printed.append(lines.get())


def _follow(stream: object, lines: "queue.Queue[str]") -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put(line)
    lines.put("")
