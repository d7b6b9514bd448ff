"""One listening socket for all processes of this machine that speak HTTP. Knows sockets; neither HTTP nor Ray.

Whoever starts the server binds the socket and keeps it. Connections wait in it while a process behind it is replaced,
so none is refused; and none crosses a proxy in front, which would cost more than the answer.
"""

import errno
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from minigpt4_serve.errors import InvalidRequest

__all__ = ["SharedSocket", "receive_socket"]

_BACKLOG = 2048
_HAND_OUT_S = 30.0


class SharedSocket:
    """A bound socket that other processes of this user can ask for, until it is closed.

    Attributes:
        path: where they ask, see ``receive_socket``.

    Raises:
        InvalidRequest: the port is taken, or the address isn't this machine's.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            self._listening = socket.create_server(
                (host, port),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=_BACKLOG,
                dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            raise InvalidRequest(_why_not(error, host, port)) from None
        self._folder = tempfile.mkdtemp(prefix="minigpt4-")  # nobody else may enter it
        self.path = str(Path(self._folder) / "socket")
        self._asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._asking.bind(self.path)
        self._asking.listen()
        threading.Thread(target=self._hand_out, name="minigpt4-socket", daemon=True).start()

    def _hand_out(self) -> None:
        while True:
            try:
                process, _ = self._asking.accept()
            except OSError:  # closed
                return
            with process, suppress(OSError):  # it may have been killed since
                socket.send_fds(process, [b"."], [self._listening.fileno()])

    def close(self) -> None:
        """The port is free again when all who have the socket are gone. Safe to call twice."""
        self._asking.close()
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use. Stop what runs there or give another --port."
    if isinstance(error, PermissionError):
        return f"Port {port} needs the system's permission; give a --port of 1024 or more."
    return f"{host} is not an address of this machine; give another --host."


def receive_socket(path: str) -> socket.socket:
    """The socket that is shared at ``path``. Raises ``OSError`` if nobody shares one there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_HAND_OUT_S)
        asking.connect(path)
        _, (descriptor, *_), *_ = socket.recv_fds(asking, 1, 1)
    return socket.socket(fileno=descriptor)
