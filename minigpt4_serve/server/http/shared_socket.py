"""One listening socket for all HTTP processes of this machine.

The process that starts the server binds the socket and keeps it open. Connections wait in its backlog while an HTTP
process is replaced, so none is refused; and there is no proxy in front, which would cost more than the answer.

Each HTTP process stays connected to the owner of the socket. The owner shuts its end of these connections down when the
server stops. An HTTP process then sends the number of its answers in progress, and closes its own end when they are
finished: neither side needs to poll.
"""

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minigpt4_serve.errors import InvalidRequest

__all__ = ["SharedSocket", "check_address", "receive_socket", "report_answers"]

_BACKLOG = 2048
_CONNECT_TIMEOUT_S = 30.0
_REPORT_BYTES = 20


class SharedSocket:
    """A bound socket that other processes of this user can receive until it is closed.

    Args:
        path: of the Unix socket that it is received from, see ``receive_socket``; in a folder of this user only.

    Raises:
        InvalidRequest: the port is taken, or the address isn't this machine's.
    """

    def __init__(self, host: str, port: int, path: Path) -> None:
        self._listening = _listen(host, port)
        self.path = str(path)
        self._sharing = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sharing.bind(self.path)
        self._sharing.listen()
        self._lock = threading.Lock()
        self._receivers: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._share, name="minigpt4-socket", daemon=True).start()

    def _share(self) -> None:
        while True:
            try:
                receiver, _ = self._sharing.accept()
            except OSError:  # closed
                return
            with self._lock:
                if self._closed:
                    receiver.close()
                    return
                self._receivers = [other for other in self._receivers if not _close_if_ended(other)]
                try:
                    socket.send_fds(receiver, [b"."], [self._listening.fileno()])
                except OSError:  # the receiver may have ended
                    receiver.close()
                else:
                    self._receivers.append(receiver)

    def drain(self, timeout_s: float, on_answers: Callable[[int], None] = lambda count: None) -> bool:
        """Close the socket and wait until every process that received it has closed its connection or ended.

        Args:
            on_answers: called once with the number of answers that they finish, if there are any.

        Returns:
            False if some process still has it after ``timeout_s``.
        """
        with self._lock:
            receivers = self._receivers
            self._receivers = []
            self._closed = True
            self._sharing.close()
            self._listening.close()
        with suppress(OSError):
            Path(self.path).unlink(missing_ok=True)
        deadline = time.monotonic() + timeout_s
        unreported = set(receivers)
        answers = 0
        with selectors.DefaultSelector() as selector:
            for receiver in receivers:
                with suppress(OSError):  # it has ended: end of file can be read at once
                    receiver.shutdown(socket.SHUT_WR)
                selector.register(receiver, selectors.EVENT_READ)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    assert isinstance(key.fileobj, socket.socket)
                    if report := _read_report(key.fileobj):
                        answers += report
                    else:
                        selector.unregister(key.fileobj)
                    unreported.discard(key.fileobj)
                if answers and not unreported:
                    on_answers(answers)
                    answers = 0
            drained = not selector.get_map()
        for receiver in receivers:
            receiver.close()
        return drained

    def close(self) -> None:
        """Close the socket without waiting. Its port is free when all receivers have ended. Safe to call twice."""
        self.drain(0)


def _read_report(receiver: socket.socket) -> int:
    """The number of answers that the process is finishing; 0 once it has closed its connection or ended."""
    try:
        return int(receiver.recv(_REPORT_BYTES) or 0)
    except OSError:
        return 0


def report_answers(owner: socket.socket, count: int) -> None:
    """Send the number of answers in progress to a stopping owner; none is not sent.

    Args:
        owner: as ``receive_socket`` returns it.
    """
    if count:
        with suppress(OSError):  # the owner has ended
            owner.send(b"%d" % count)


def check_address(host: str, port: int) -> None:
    """Check that a server can listen there.

    Raises:
        InvalidRequest: the port is taken, or the address isn't this machine's.
    """
    _listen(host, port).close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise InvalidRequest(_explain(error, host, port)) from None


def _close_if_ended(receiver: socket.socket) -> bool:
    try:
        ended = not receiver.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        ended = True
    if ended:
        receiver.close()
    return ended


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use. Stop what runs there or give another --port."
    if isinstance(error, PermissionError):
        return f"Port {port} needs the system's permission; give a --port of 1024 or more."
    return f"{host} is not an address of this machine; give another --host."


def receive_socket(path: str) -> tuple[socket.socket, socket.socket]:
    """(listening socket that is shared at ``path``, connection to its owner).

    The connection reaches its end of file when the owner stops. The caller closes it when it has finished its work: a
    stopping owner waits for that.

    Raises:
        OSError: no socket is shared there.
    """
    owner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        owner.settimeout(_CONNECT_TIMEOUT_S)
        owner.connect(path)
        _, descriptors, *_ = socket.recv_fds(owner, 1, 1)
        if not descriptors:
            raise ConnectionResetError(errno.ECONNRESET, "the owner of the socket stopped")
    except BaseException:
        owner.close()
        raise
    owner.setblocking(False)
    return socket.socket(fileno=descriptors[0]), owner
