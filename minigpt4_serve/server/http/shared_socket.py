"""One listening socket for all processes of this machine that speak HTTP. Knows sockets; neither HTTP nor Ray.

Whoever starts the server binds the socket and keeps it. Connections wait in it while a process behind it is replaced,
so none is refused; and none crosses a proxy in front, which would cost more than the answer.

Each HTTP process stays connected to the owner of the socket. The owner closes its end of these connections when the
server stops, and an HTTP process closes its own when its answers are finished: neither side needs to poll.
"""

import errno
import selectors
import shutil
import socket
import tempfile
import threading
import time
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
        self._lock = threading.Lock()
        self._receivers: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._hand_out, name="minigpt4-socket", daemon=True).start()

    def _hand_out(self) -> None:
        while True:
            try:
                receiver, _ = self._asking.accept()
            except OSError:  # closed
                return
            with self._lock:
                if self._closed:
                    receiver.close()
                    return
                self._receivers = [other for other in self._receivers if not _close_if_gone(other)]
                try:
                    socket.send_fds(receiver, [b"."], [self._listening.fileno()])
                except OSError:  # it may have been killed since
                    receiver.close()
                else:
                    self._receivers.append(receiver)

    def drain(self, timeout_s: float) -> bool:
        """Close the socket, and wait until every process that received it has closed its connection, or is gone.

        Returns:
            False if some process still has it after ``timeout_s``.
        """
        with self._lock:
            receivers, self._receivers = self._receivers, []
            self._closed = True
            self._asking.close()
            self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as open_ones:
            for receiver in receivers:
                with suppress(OSError):  # gone already: its end can be read at once
                    receiver.shutdown(socket.SHUT_WR)
                open_ones.register(receiver, selectors.EVENT_READ)
            while open_ones.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in open_ones.select(left):  # a receiver sends nothing: this is its end
                    open_ones.unregister(key.fileobj)
            drained = not open_ones.get_map()
        for receiver in receivers:
            receiver.close()
        return drained

    def close(self) -> None:
        """Close the socket without waiting. Its port is free when all who received it are gone. Safe to call twice."""
        self.drain(0)


def _close_if_gone(receiver: socket.socket) -> bool:
    try:
        gone = not receiver.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        gone = True
    if gone:
        receiver.close()
    return gone


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use. Stop what runs there or give another --port."
    if isinstance(error, PermissionError):
        return f"Port {port} needs the system's permission; give a --port of 1024 or more."
    return f"{host} is not an address of this machine; give another --host."


def receive_socket(path: str) -> tuple[socket.socket, socket.socket]:
    """(listening socket that is shared at ``path``, connection to its owner).

    The connection ends when the owner stops or is gone. The caller closes it when it needs the listening socket no more
    and has finished its work: a stopping owner waits for that.

    Raises:
        OSError: nobody shares a socket there.
    """
    owner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        owner.settimeout(_HAND_OUT_S)
        owner.connect(path)
        _, descriptors, *_ = socket.recv_fds(owner, 1, 1)
        if not descriptors:
            raise ConnectionResetError(errno.ECONNRESET, "the owner of the socket stopped")
    except BaseException:
        owner.close()
        raise
    owner.setblocking(False)
    return socket.socket(fileno=descriptors[0]), owner
