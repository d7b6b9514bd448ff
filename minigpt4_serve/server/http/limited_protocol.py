"""Limits of connections: what may arrive before a request reaches the application, for how long, and from how many.

uvicorn has no limit on headers, addresses, trailers and chunk extensions, no timeout for them or for writes, and it
accepts connections until the process has no file descriptor left. ``LimitedProtocol`` adds these to its protocol on
httptools. (uvicorn's other one, on h11, bounds sizes only, and each request costs several times as much.)
"""

import asyncio
import ipaddress
import json
import logging
from collections import Counter, deque
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from minigpt4_serve.errors import InvalidRequest, Overloaded
from minigpt4_serve.server.http.auth import PROBE_PATHS
from minigpt4_serve.server.http.error_handlers import ERROR_HEADER

__all__ = ["ConnectionTable", "LimitedProtocol", "TransportLimits", "find_connection_limit"]

_log = logging.getLogger(__name__)

_PIECE = 16 * 2**10  # bytes given to the parser at a time; framing is counted to this precision behind the headers
_MOST_PIPELINED = 32  # requests that wait for another one's response on their connection; each takes some kilobytes
_BULK = 16 * 2**10  # bytes received at once, from which on a connection waits for its turn to be read again
_READ_IN_A_TURN = 4  # such connections; the event loop reads up to 256 KiB of each
_CHECK_S = 0.5  # between checks of all connections
_MIN_PROGRESS = 16 * 2**10  # bytes that a slow reader takes at least within ``write_s``
_MOST_CONNECTIONS = 4096
_UNKNOWN_DESCRIPTORS = 256  # assumed open files where they can't be counted


@dataclass(frozen=True)
class TransportLimits:
    """What one connection may send and how long it may take, and how many there may be.

    Attributes:
        header_bytes: of the request line and headers together, of trailers, and of a chunk's extension.
        header_fields: lines of headers; each costs more memory than its bytes.
        header_s: seconds within which the headers must arrive.
        pending_bytes: of incomplete headers of all connections together.
        discard_s: seconds that a client may go on sending a body after the response to it.
        write_s: seconds without progress after which a client that doesn't read is disconnected.
        response_s: seconds from a request's last byte to the last byte of its response.
        connections: open ones of this process; a client's network may have half of them.
    """

    header_bytes: int = 64 * 2**10
    header_fields: int = 256
    header_s: float = 10.0
    pending_bytes: int = 16 * 2**20
    discard_s: float = 10.0
    write_s: float = 30.0
    response_s: float = inf
    connections: int = _MOST_CONNECTIONS


def find_connection_limit() -> int:
    """Connections that this process can hold with half of its free file descriptors, at most 4096."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return _MOST_CONNECTIONS
        used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except ImportError:  # Windows
        return _MOST_CONNECTIONS
    except OSError:
        used = _UNKNOWN_DESCRIPTORS
    return max(16, min(_MOST_CONNECTIONS, (soft - used) // 2))


class ConnectionTable:
    """The open connections of one server, by the network of their client.

    A *silent* connection has no request in progress: nothing or only a part of a request has arrived on it. At a limit
    the oldest silent one of the network with the most of them is closed for a new one. If there is none, only probes
    are answered on the new connection.
    """

    def __init__(self, limits: TransportLimits) -> None:
        self.limits = limits
        self._open: dict[LimitedProtocol, None] = {}
        self._by_network: Counter[str] = Counter()
        self._silent: dict[str, dict[LimitedProtocol, None]] = {}  # by network, the oldest first
        self._pending = 0
        self._closed: Counter[str] = Counter()  # by reason, since the last log line
        self._timer: asyncio.TimerHandle | None = None
        self._to_read: deque[LimitedProtocol] = deque()
        self._turn: asyncio.Handle | None = None

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def add(self, connection: "LimitedProtocol") -> None:
        """Admit a new connection, at the cost of a silent one if there are too many."""
        limit = self.limits.connections
        network = connection.network
        self._open[connection] = None
        self._by_network[network] += 1
        full = len(self._open) > limit
        if full or self._by_network[network] > max(1, limit // 2):
            closed = self._close_oldest(self._busiest() if full else network, "too many connections")
            connection.only_probes = not closed
        self.mark_silent(connection)
        if len(self._open) > limit + max(8, limit // 8):
            self.close(connection, "too many connections")
        if self._timer is None:
            self._timer = connection.loop.call_later(_CHECK_S, self._check, connection.loop)

    def remove(self, connection: "LimitedProtocol") -> None:
        """Remove a connection that is closed. Safe to call twice."""
        if connection not in self._open:
            return
        del self._open[connection]
        self._by_network[connection.network] -= 1
        if not self._by_network[connection.network]:
            del self._by_network[connection.network]
        self.mark_busy(connection)

    def mark_silent(self, connection: "LimitedProtocol") -> None:
        """Record that no request is in progress on the connection."""
        if connection in self._open:
            self._silent.setdefault(connection.network, {})[connection] = None

    def mark_busy(self, connection: "LimitedProtocol") -> None:
        """Record that a request's headers are complete: the connection isn't silent, and no bytes of it are pending."""
        self._pending -= connection.pending
        connection.pending = 0
        silent = self._silent.get(connection.network)
        if silent is not None and connection in silent:
            del silent[connection]
            if not silent:
                del self._silent[connection.network]

    def add_pending(self, connection: "LimitedProtocol", size: int) -> None:
        """Count bytes of incomplete headers."""
        connection.pending += size
        self._pending += size
        while self._pending > self.limits.pending_bytes and self._close_oldest(self._busiest(), "headers in flight"):
            pass

    def read_later(self, connection: "LimitedProtocol") -> None:
        """Read from a connection again at its turn: bodies that arrive on many delay no other request."""
        self._to_read.append(connection)
        if self._turn is None:
            self._turn = connection.loop.call_soon(self._next_turn, connection.loop)

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(min(_READ_IN_A_TURN, len(self._to_read))):
            self._to_read.popleft().flow.take_turn()
        self._turn = loop.call_soon(self._next_turn, loop) if self._to_read else None

    def close(self, connection: "LimitedProtocol", reason: str) -> None:
        """Disconnect at once; the reason is for the log."""
        self._closed[reason] += 1
        self.remove(connection)
        connection.transport.abort()

    def count(self, reason: str) -> None:
        """Count a connection that was refused, for the log."""
        self._closed[reason] += 1

    def _busiest(self) -> str:
        return max(self._silent, key=lambda network: len(self._silent[network]), default="")

    def _close_oldest(self, network: str, reason: str) -> bool:
        """Close the oldest silent connection of a network; False if it has none."""
        oldest = next(iter(self._silent.get(network, ())), None)
        if oldest is None:
            return False
        self.close(oldest, reason)
        return True

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.check(now)
        if self._closed:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self._closed.items()))
            _log.warning("connections were closed (%s)", reasons)
            self._closed.clear()
        self._timer = loop.call_later(_CHECK_S, self._check, loop) if self._open else None


class _Flow(FlowControl):
    """Flow control of a connection that may wait for its turn to be read, see ``ConnectionTable.read_later``."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.awaits_turn = False

    def wait_for_turn(self) -> None:
        self.awaits_turn = True
        self._transport.pause_reading()

    def take_turn(self) -> None:
        self.awaits_turn = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        if self.awaits_turn:
            self.read_paused = False
        else:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """One connection, see the module.

    Args:
        table: of the server.

    Attributes:
        network: of the client; an IPv6 client may use any address of its /64.
        only_probes: whether other requests are refused, because there are too many connections.
        pending: bytes of incomplete headers, as the table counts them.
    """

    def __init__(self, table: ConnectionTable, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table
        self._limits = table.limits
        self.network = ""
        self.only_probes = False
        self.pending = 0
        self.url = b""
        self._refused = False
        self._in_headers = True  # of the next request, whether or not a byte of it has arrived
        self._headers_since: float | None = None
        self._framing = 0  # bytes that aren't body, since the request's begin, its headers or its last byte of body
        self._body_framing = 0  # bytes of chunk headers and trailers
        self._body_bytes = 0
        self._complete_since: float | None = None  # when the request in progress had arrived
        self._discard_until: float | None = None
        self._stalled: tuple[float, int] | None = None  # (time, bytes left to write) of the last progress

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)
        self.network = _network(self.client[0] if self.client else "")
        self._headers_since = self.loop.time()
        self._table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._table.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on to the parser, in pieces, until they exceed a limit."""
        if len(data) >= _BULK and not self.flow.awaits_turn:
            self.flow.wait_for_turn()
            self._table.read_later(self)
        limit = self._limits.header_bytes
        if self._in_headers and self._headers_since is None:
            self._headers_since = self.loop.time()
        begin = 0
        while begin < len(data) and self._is_reading():
            piece = data[begin : begin + min(_PIECE, limit + 1 - self._framing)]
            begin += len(piece)
            self._framing += len(piece)
            self._body_framing += len(piece)
            if self._in_headers:
                self._table.add_pending(self, len(piece))
                if self.transport.is_closing():
                    return
            super().data_received(piece)
            if not self._is_reading():
                return
            if self._framing > limit or (not self._in_headers and self._body_framing > limit + self._body_bytes):
                self._refuse_framing()

    def _is_reading(self) -> bool:
        return not self._refused and not self.transport.is_closing()

    def _refuse_framing(self) -> None:
        if not self._in_headers:
            self._refuse(431, "The request's trailers or chunk headers are too long.")
        elif len(self.url) > self._limits.header_bytes // 2:
            self._refuse(414, "The request's address is too long.")
        else:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        kib = self._limits.header_bytes // 2**10
        self._refuse(431, f"The request's headers have more than {kib} KiB or {self._limits.header_fields} lines.")

    def on_message_begin(self) -> None:
        """See ``HttpToolsProtocol``."""
        if self._headers_since is None:
            self._headers_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See ``HttpToolsProtocol``."""
        if self._refused:
            return
        self._table.mark_busy(self)
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._refused = True
            self._table.close(self, "too many pipelined requests")
            return
        if len(self.headers) > self._limits.header_fields:
            self._refuse_headers()
            return
        if self.only_probes and self.url.partition(b"?")[0].decode("latin-1") not in PROBE_PATHS:
            self._refuse(503, "The server has too many connections; try again in a moment.")
            return
        self._in_headers = False
        self._headers_since = None
        self._framing = 0
        self._body_framing = 0
        self._body_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See ``HttpToolsProtocol``."""
        if self._refused:
            return
        self._framing = 0
        self._body_framing -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See ``HttpToolsProtocol``. Trailers are dropped."""
        if self._in_headers:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """See ``HttpToolsProtocol``."""
        if self._refused:
            return
        self._in_headers = True
        self._framing = 0
        self._discard_until = None
        if not self.pipeline and not self.cycle.response_complete:
            self._complete_since = self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See ``HttpToolsProtocol``."""
        now = self.loop.time()
        continues = bool(self.pipeline)
        arrived = continues and not self.pipeline[-1][0].more_body  # the next request, its body included
        self._complete_since = now if arrived else None
        if not continues and not self.transport.is_closing():
            self._table.mark_silent(self)
            if self._headers_since is not None:
                self._headers_since = now
            if self.cycle.more_body:
                self._discard_until = now + self._limits.discard_s
        super().on_response_complete()

    def check(self, now: float) -> None:
        """Close the connection if it exceeds a time limit; ``now`` is of the event loop's clock."""
        if self._discard_until is not None and now >= self._discard_until:
            self._table.close(self, "body after the response")
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            if self._complete_since is not None and now - self._complete_since > self._limits.response_s:
                self._table.close(self, "response took too long")
                return
        elif self._headers_since is not None and now - self._headers_since > self._limits.header_s:
            if self._framing and not self._refused:
                self._refuse(408, f"The request's headers did not arrive within {self._limits.header_s:g} s.")
            elif not self._refused:
                self._table.close(self, "silent")
            return
        left = self.transport.get_write_buffer_size()
        # While an answer is written and its reader isn't behind, bytes come and go: that is no standstill.
        if not left or (answering and not self.flow.write_paused):
            self._stalled = None
        elif self._stalled is None or left <= self._stalled[1] - _MIN_PROGRESS:
            self._stalled = (now, left)
        elif now - self._stalled[0] > self._limits.write_s:
            self._table.close(self, "response not read")

    def _refuse(self, status: int, message: str) -> None:
        """Send an error instead of passing the request on, and close; what else arrives is dropped."""
        self._refused = True
        self._table.count(f"status {status}")
        self._unset_keepalive_if_required()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._in_headers or cycle.response_started or self.pipeline:  # another response is in progress
                self._table.close(self, "refused beside a response")
                return
            cycle.disconnected = True
            cycle.message_event.set()
        busy = status == HTTPStatus.SERVICE_UNAVAILABLE
        error = Overloaded(message, retry_after=0) if busy else InvalidRequest(message)
        body = json.dumps(error.body()).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            f"{ERROR_HEADER.decode()}: {error.code}",
        ]
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self._table.mark_silent(self)
        # The client may still be sending: closing now would reset the connection before the error is read.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._discard_until = self.loop.time() + self._limits.discard_s


def _network(host: str) -> str:
    """The address of an IPv4 client, the /64 of an IPv6 client; ``host`` itself if it is neither."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
