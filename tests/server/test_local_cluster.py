"""A local server's processes as other users of the machine see them, and what it survives."""

import os
import re
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from processes import Server, free_port, serving

from minigpt4_serve.process_tree import descendants, processes_using

pytestmark = [
    pytest.mark.ray,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="sockets and open files are read from /proc"),
]

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
_LISTENING = "0A"


def _listening_elsewhere(pid: int) -> list[str]:
    """Addresses beyond loopback, in the kernel's notation, that the process and its descendants listen on."""
    inodes = set()
    for process in (pid, *descendants(pid)):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):  # it may have been closed
                if found := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                    inodes.add(found[1])
    entries = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    own = [entry[1] for entry in entries if entry[3] == _LISTENING and entry[9] in inodes]
    assert len(own) > 5
    return [address for address in own if address.partition(":")[0] not in LOOPBACK]


def test_a_local_server_is_closed_to_others(cluster: Server) -> None:
    assert _listening_elsewhere(cluster.process.pid) == []
    assert stat.S_IMODE(cluster.folder().stat().st_mode) == 0o700
    assert stat.S_IMODE((cluster.folder() / "token").stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_server_starts_in_a_hard_environment_and_cleans_up(tmp_path: Path) -> None:
    """Proxies, a long temporary folder; then a killed server's successor, and the loss of its raylet."""
    base = tmp_path / ("long" * 25)
    base.mkdir()
    proxy = "http://127.0.0.1:9"
    environment = {
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"), proxy),
        "no_proxy": "localhost,127.0.0.1,::1",
        "TMPDIR": str(base),
    }
    with serving("--log-level", "warning", **environment) as server:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=HELLO, timeout=120).status_code == 200
        (left,) = base.glob("minigpt4-*")
        server.process.kill()
        server.process.wait()
    with serving("--log-level", "warning", **environment) as server:
        assert not left.exists()
        assert processes_using(left) == []
        assert httpx.post(f"{server.url}/v1/chat/completions", json=HELLO, timeout=120).status_code == 200
        assert _listening_elsewhere(server.process.pid) == []
        processes = descendants(server.process.pid)
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes}
        (raylet,) = [pid for pid, command in commands.items() if b"/raylet/raylet\0" in command]
        os.kill(raylet, signal.SIGKILL)
        assert server.process.wait(timeout=240) == 1
        printed = "".join(iter(lambda: server.lines.get(timeout=60), ""))
        assert "A process of Ray ended (raylet)" in printed
        assert "Traceback" not in printed
        assert not [pid for pid in processes if _runs(pid)]


@pytest.mark.slow
def test_sigterm_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("minigpt4")), "serve", "--port", str(free_port())]
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("• loading the model"):
            assert process.poll() is None
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert not [pid for pid in started if _runs(pid)]


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may still be listed."""
    try:
        return bool(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return False
