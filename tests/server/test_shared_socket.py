"""One listening socket for several processes: who connects while one is replaced is not refused."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.http.shared_socket import SharedSocket, receive_socket


@contextmanager
def _received(shared: SharedSocket) -> Iterator[socket.socket]:
    listening, owner = receive_socket(shared.path)
    with listening, owner:
        yield listening


def test_connections_during_a_replacement_reach_the_successor(tmp_path: Path) -> None:
    shared = SharedSocket("127.0.0.1", 0, tmp_path / "socket")
    with _received(shared) as listening:
        port = listening.getsockname()[1]
    try:
        for number in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:  # no process accepts yet
                with _received(shared) as listening:
                    connection, _ = listening.accept()
                with connection:
                    connection.sendall(bytes([number]))
                assert client.recv(1) == bytes([number])
    finally:
        shared.close()
        shared.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)
    with pytest.raises(OSError, match="No such file"):
        receive_socket(shared.path)


@pytest.mark.parametrize("host", ["nohost.invalid", "192.0.2.77", "2001:db8::1"])
def test_an_address_that_is_not_ours_is_named(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"{host} is not an address of this machine"):
        SharedSocket(host, 0, tmp_path / "socket")


def test_a_receiver_killed_early_does_not_affect_others(tmp_path: Path) -> None:
    shared = SharedSocket("127.0.0.1", 0, tmp_path / "socket")
    try:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                asking.connect(shared.path)
        with _received(shared):
            pass
    finally:
        shared.close()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"Port {port} on 127.0.0.1 is in use"):
            SharedSocket("127.0.0.1", port, tmp_path / "socket")


def test_drain_waits_for_every_receiver(tmp_path: Path) -> None:
    shared = SharedSocket("127.0.0.1", 0, tmp_path / "socket")
    received = [receive_socket(shared.path) for _ in range(3)]
    drained = threading.Event()

    def drain() -> None:
        assert shared.drain(timeout_s=300)
        drained.set()

    owner = threading.Thread(target=drain)
    owner.start()
    for listening, connection in received:
        connection.settimeout(60)
        assert connection.recv(1) == b""  # the server stops
        assert not drained.is_set()
        listening.close()
        connection.close()
    owner.join(timeout=60)
    assert drained.is_set()


def test_drain_gives_up_after_its_timeout(tmp_path: Path) -> None:
    shared = SharedSocket("127.0.0.1", 0, tmp_path / "socket")
    with _received(shared):
        assert not shared.drain(timeout_s=0.05)
    assert shared.drain(timeout_s=0.05)  # nothing is left to wait for


def test_receivers_that_have_gone_are_not_waited_for(tmp_path: Path) -> None:
    shared = SharedSocket("127.0.0.1", 0, tmp_path / "socket")
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(50):
        with _received(shared):
            pass
    assert len(list(descriptors.iterdir())) < before + 10  # each new receiver lets go of those that have gone
    assert shared.drain(timeout_s=300)


def test_receivers_notice_that_the_owner_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from minigpt4_serve.server.http.shared_socket import SharedSocket as S; "
    code += "s = S('127.0.0.1', 0, sys.argv[1]); print(s.path, flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "socket")], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        path = owner.stdout.readline().strip()
        listening, connection = receive_socket(path)
        owner.kill()
        with listening, connection:
            connection.settimeout(60)
            assert connection.recv(1) == b""
