"""One listening socket for several processes: who connects while one is replaced is not refused."""

import socket

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.serving.shared_socket import SharedSocket, receive_socket


def test_who_connects_while_a_process_is_replaced_is_answered_by_the_next() -> None:
    shared = SharedSocket("127.0.0.1", 0)
    with receive_socket(shared.path) as listening:
        port = listening.getsockname()[1]
    try:
        for number in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:  # nobody accepts yet
                with receive_socket(shared.path) as listening:
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
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{host} is not an address of this machine"):
        SharedSocket(host, 0)


def test_who_is_killed_before_the_socket_reaches_it_costs_nobody_else() -> None:
    shared = SharedSocket("127.0.0.1", 0)
    try:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                asking.connect(shared.path)
        receive_socket(shared.path).close()
    finally:
        shared.close()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"Port {port} on 127.0.0.1 is in use"):
            SharedSocket("127.0.0.1", port)
