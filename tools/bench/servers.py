"""The servers of a benchmark: child processes that are stopped at the end, and the CPU time that they use."""

import asyncio
import contextlib
import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from minigpt4_serve.process_tree import descendants
from minigpt4_serve.settings import TINY_MODEL
from tools.bench.http_requests import send

__all__ = ["BARE", "ServerUnderTest", "parse_server", "reserve_core_for_http", "running", "write_random_model"]

BARE = "uvicorn"
"""A server whose name starts with this runs application and engine in one process, without Ray."""

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 60


@dataclass
class ServerUnderTest:
    """One server.

    Attributes:
        settings: as ``minigpt4 serve --config`` reads them.
        environment: variables of its process.
        pid: of its first process; all others are descendants.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    pid: int = 0

    @property
    def running_slots(self) -> int:
        """Requests that all its engines answer at the same time."""
        return int(self.settings["engine"]["max_running"]) * self.engines

    @property
    def capacity(self) -> int:
        """Requests that run or wait at the same time; one more is refused."""
        return self.running_slots + int(self.settings["engine"]["max_waiting"]) * self.engines

    @property
    def engines(self) -> int:
        """Engines behind its address."""
        return int(self.settings.get("scale", {}).get("engines", 1))

    def cpu_seconds(self) -> float:
        """CPU time of its processes so far.

        Unlike the wall time it doesn't depend on other programs: where more of them run than there are cores, a program
        with more processes gets a larger share of the machine.
        """
        return sum(_cpu_ticks(self.pid).values()) / os.sysconf("SC_CLK_TCK")


def parse_server(text: str, settings: dict[str, Any]) -> ServerUnderTest:
    """Read ``NAME[:KEY=VALUE…]``: keys in capitals are environment variables, others change a copy of ``settings``."""
    name, *pairs = text.split(":")
    server = ServerUnderTest(name, copy.deepcopy(settings))
    for key, _, value in (pair.partition("=") for pair in pairs):
        if key.isupper():
            server.environment[key] = value
            continue
        *path, last = key.split(".")
        section = server.settings
        for step in path:
            section = section.setdefault(step, {})
        section[last] = yaml.safe_load(value)
    return server


@contextlib.contextmanager
def running(server: ServerUnderTest, folder: Path) -> Iterator[None]:
    """Run the server; the body runs from its first answer to its stop. Settings and log are written into ``folder``.

    Raises:
        SystemExit: it ended or didn't answer in time; with the end of its log.
    """
    server.port = _free_port()
    config = folder / f"{server.port}.yaml"
    config.write_text(yaml.safe_dump({**server.settings, "port": server.port, "model_name": "bench"}))
    command = [str(Path(sys.executable).with_name("minigpt4")), "serve", "--config", str(config)]
    if server.name.startswith(BARE):
        command = [sys.executable, "-m", "tools.bench.bare_server", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), **server.environment}  # this checkout, whatever is installed
    with (folder / f"{server.port}.log").open("w+") as log:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=log, stderr=subprocess.STDOUT, cwd=_ROOT, env=environment, start_new_session=True
        )
        server.pid = process.pid
        try:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not asyncio.run(_is_healthy(server.port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{server.name} did not start:\n{log.read()[-2000:]}")
                time.sleep(0.5)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


async def _is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        async with send(port, "GET", "/health") as response:
            return b" 200 " in await response.read(100)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_random_model(folder: Path) -> Path:
    """Write the embedded model's files with random weights: its answers always have the requested length."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    weights = load_file(TINY_MODEL / "model.safetensors")
    for name, values in weights.items():
        if values.ndim > 1:
            weights[name] = (torch.randn(values.shape) * 0.02).to(values.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def reserve_core_for_http(server: ServerUnderTest) -> None:
    """Pin the server's engines to all cores but the first, which is left to HTTP and the client."""
    cores = set(range(1, os.cpu_count() or 1))
    for pid in _cpu_ticks(server.pid):
        with contextlib.suppress(OSError):  # it may have ended
            if b":engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)


def _cpu_ticks(pid: int) -> dict[int, int]:
    """CPU time of the process and of each living descendant, in clock ticks by process id."""
    ticks: dict[int, int] = {}
    for member in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):  # it may have ended
            fields = Path(f"/proc/{member}/stat").read_text(errors="replace").rpartition(")")[2].split()
            ticks[member] = int(fields[11]) + int(fields[12])
    return ticks
