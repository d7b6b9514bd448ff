"""What one connection may send, how long it may take, and how many there may be."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from waiting import wait_until

from minigpt4_serve.server.http import limited_protocol
from minigpt4_serve.server.http.limited_protocol import (
    ConnectionTable,
    LimitedProtocol,
    TransportLimits,
    find_connection_limit,
)

LONG_S = 600.0  # a time that no test waits for
KIB = 1024


class App:
    """Reads the body, unless the path says otherwise, and answers ``ok``."""

    def __init__(self) -> None:
        self.bodies: list[int] = []
        self.gate = asyncio.Event()
        self.ended = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = b"ok"
            if scope["path"] != "/unread":
                await self._read(receive)
            if scope["path"] == "/slow":
                await self.gate.wait()
            if scope["path"] == "/large":
                body = bytes(64 * KIB**2)
            length = str(len(body)).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
            await send({"type": "http.response.body", "body": body[:-1], "more_body": True})
            if scope["path"] == "/endless":
                while (await receive())["type"] != "http.disconnect":
                    pass
            await send({"type": "http.response.body", "body": body[-1:]})
        finally:
            self.ended += 1

    async def _read(self, receive: Receive) -> None:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            if not message["more_body"]:
                self.bodies.append(size)
                return


class Server:
    """A server in this event loop."""

    def __init__(self, app: App, table: ConnectionTable, port: int) -> None:
        self.app = app
        self.table = table
        self.port = port

    @asynccontextmanager
    async def connected(self, host: str = "127.0.0.1") -> AsyncIterator["Client"]:
        local = (host, 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=local)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def trickle(self, piece: bytes) -> None:
        for _ in range(1000):
            await self.send(piece)
            await asyncio.sleep(0.02)

    async def get(self, path: str) -> None:
        await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def head(self) -> bytes:
        async with asyncio.timeout(60):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def status(self) -> int:
        return int((await self.head()).split()[1])

    async def answer(self) -> bytes:
        head = (await self.head()).lower()
        length = int(head.partition(b"content-length: ")[2].split()[0])
        return await self._reader.readexactly(length)

    async def end(self) -> bytes:
        """What arrives until the server closes the connection."""
        async with asyncio.timeout(60):
            received = b""
            while True:
                try:
                    chunk = await self._reader.read(KIB)
                except ConnectionError:
                    return received
                if not chunk:
                    return received
                received += chunk


Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server with the given limits."""
    running: list[tuple[uvicorn.Server, asyncio.Task[None], Server]] = []

    async def start(**limits: Any) -> Server:
        app = App()
        table = ConnectionTable(TransportLimits(**limits))
        config = uvicorn.Config(
            app, http=partial(LimitedProtocol, table), ws="none", lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        listening = socket.create_server(("127.0.0.1", 0))
        task = asyncio.create_task(server._serve([listening]))
        await wait_until(lambda: server.started)
        started = Server(app, table, listening.getsockname()[1])
        running.append((server, task, started))
        return started

    yield start
    for server, task, started in running:
        started.app.gate.set()
        server.force_exit = True
        server.should_exit = True
        await task
        await wait_until(lambda: not len(started.table))  # noqa: B023 (called at once)


def _endless(start: bytes, piece: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield piece * (KIB**2 // len(piece))


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_LONG = {
    "many headers": (GET, b"a: b\r\n", 431),
    "one header": (GET + b"a: ", b"a", 431),
    "name of a header": (GET, b"a", 431),
    "folded header": (GET + b"a: b", b"\r\n b", 400),  # not allowed by HTTP
    "address": (b"GET /", b"a", 414),
    "query": (b"GET /?", b"a=1&", 414),
    "blank lines before a request": (b"", b"\r\n", 431),
    "chunk extension": (CHUNKED + b"1;", b"a", 431),
    "second chunk's extension": (CHUNKED + b"1\r\na\r\n1;", b"a", 431),
    "many chunk extensions": (CHUNKED, b"1;" + b"a" * 200 + b"\r\na\r\n", 431),
    "chunks of one byte": (CHUNKED, b"1\r\na\r\n", 431),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n", 431),
    "one trailer": (CHUNKED + b"1\r\na\r\n0\r\na: ", b"a", 431),
}


async def test_connections_that_send_much_take_turns(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    size = KIB**2
    turn = 0
    turns: Counter[int] = Counter()
    out_of_turn = 0
    take_turn = limited_protocol._Flow.take_turn
    data_received = LimitedProtocol.data_received

    def count_turn(flow: limited_protocol._Flow) -> None:
        turns[turn] += 1
        take_turn(flow)

    def count_data(protocol: LimitedProtocol, data: bytes) -> None:
        nonlocal out_of_turn
        out_of_turn += protocol.flow.awaits_turn
        data_received(protocol, data)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(limited_protocol._Flow, "take_turn", count_turn)
    monkeypatch.setattr(LimitedProtocol, "data_received", count_data)
    server = await serve()
    counting = asyncio.create_task(count_turns())
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.connected()) for _ in range(30)]
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
        await asyncio.gather(*(client.send(head + bytes(size)) for client in clients))
        assert [await client.answer() for client in clients] == [b"ok"] * 30
    counting.cancel()
    assert server.app.bodies == [size] * 30
    assert sum(turns.values()) >= 30 * 4, "asyncio reads at most 256 KiB at once"
    assert max(turns.values()) <= limited_protocol._READ_IN_A_TURN
    assert not out_of_turn


@pytest.mark.parametrize("case", TOO_LONG)
async def test_what_has_no_end_is_refused_early(serve: Serve, case: str) -> None:
    start, piece, status = TOO_LONG[case]
    server = await serve(discard_s=0.1)
    async with server.connected() as client:
        async with asyncio.timeout(LONG_S / 10):
            with suppress(ConnectionError):  # the server doesn't wait for the rest
                for data in _endless(start, piece):
                    await client.send(data)
        received = await client.end()
    assert not received or int(received.split()[1]) == status
    assert not server.app.bodies


@pytest.mark.parametrize("case", TOO_LONG)
async def test_the_refusal_can_be_read(serve: Serve, case: str) -> None:
    start, piece, status = TOO_LONG[case]
    server = await serve()
    async with server.connected() as client:
        await client.send(start + piece * (150 * KIB // len(piece)))
        head = await client.head()
        assert int(head.split()[1]) == status
        assert b"connection: close" in head.lower()
        assert status in (400, 431, 414)


FITTING = {
    "headers": GET + b"a: " + b"b" * (63 * KIB) + b"\r\n\r\n",
    "256 lines": GET + b"a: b\r\n" * 255 + b"\r\n",
    "address": b"GET /?" + b"a" * (63 * KIB) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunk extension": CHUNKED + b"1;" + b"a" * (60 * KIB) + b"\r\na\r\n0\r\n\r\n",
    "trailer": CHUNKED + b"1\r\na\r\n0\r\na: " + b"a" * (60 * KIB) + b"\r\n\r\n",
    "chunks": CHUNKED + (b"400\r\n" + b"a" * KIB + b"\r\n") * 2000 + b"0\r\n\r\n",
    "body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n" + bytes(8 * KIB**2),
}


@pytest.mark.parametrize("case", FITTING)
@pytest.mark.parametrize("times", [1, 3])
async def test_what_fits_is_answered(serve: Serve, case: str, times: int) -> None:
    server = await serve()
    async with server.connected() as client:
        for _ in range(times):
            await client.send(FITTING[case])
            assert await client.answer() == b"ok"
    assert len(server.app.bodies) == times


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    server = await serve()
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n" + bytes(30_000)
    async with server.connected() as client:
        await client.send(request * 10)
        for _ in range(10):
            assert await client.answer() == b"ok"
    assert server.app.bodies == [30_000] * 10


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\na"])
async def test_pipelined_requests_have_a_limit(serve: Serve, request_: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    complete = LimitedProtocol.on_message_complete

    def count(protocol: LimitedProtocol) -> None:
        nonlocal most
        complete(protocol)
        most = max(most, len(protocol.pipeline))

    monkeypatch.setattr(LimitedProtocol, "on_message_complete", count)
    server = await serve()
    async with server.connected() as client:
        with suppress(ConnectionError):
            await client.send(b"GET /slow HTTP/1.1\r\n\r\n" + request_ * 10_000)
        await client.end()
        assert most <= limited_protocol._MOST_PIPELINED
        server.app.gate.set()
    async with server.connected() as other:
        await other.get("/")
        assert await other.answer() == b"ok"


SLOW = {
    "nothing": b"",
    "half an address": b"GET /",
    "half a header": GET + b"a",
    "blank lines": b"\r\n",
    "second request": GET + b"\r\n" + b"GET /",
}


@pytest.mark.parametrize("case", SLOW)
async def test_headers_must_arrive_in_time(serve: Serve, case: str) -> None:
    server = await serve(header_s=0.2, discard_s=0.2)
    async with server.connected() as client:
        await client.send(SLOW[case])
        received = await client.end()
        expected = {"nothing": b"", "second request": b"HTTP/1.1 200"}.get(case, b"HTTP/1.1 408")
        assert received.startswith(expected)
        await wait_until(lambda: len(server.table) == 0)


async def test_a_trickle_of_headers_gets_no_more_time(serve: Serve) -> None:
    server = await serve(header_s=0.3, discard_s=0.2)
    async with server.connected() as client:
        await client.send(GET)
        with pytest.raises(ConnectionError):
            await client.trickle(b"a: b\r\n")


async def test_answers_outlast_the_time_of_headers(serve: Serve) -> None:
    server = await serve(header_s=0.1)
    async with server.connected() as client:
        await client.get("/slow")
        await asyncio.sleep(1.2)
        server.app.gate.set()
        assert await client.answer() == b"ok"
        await asyncio.sleep(1.2)  # idle connections are uvicorn's matter
        await client.get("/")
        assert await client.answer() == b"ok"


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"]
)
async def test_a_body_after_its_response_ends(serve: Serve, framing: bytes) -> None:
    server = await serve(discard_s=0.3)
    async with server.connected() as client:
        await client.send(b"POST /unread HTTP/1.1\r\nHost: x\r\n" + framing)
        assert await client.answer() == b"ok"
        with pytest.raises(ConnectionError):
            await client.trickle(b"a")


async def test_a_late_body_keeps_the_connection(serve: Serve) -> None:
    server = await serve()
    async with server.connected() as client:
        await client.send(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert await client.answer() == b"ok"
        await client.send(bytes(100_000))
        await client.get("/")
        assert await client.answer() == b"ok"


async def test_a_reader_that_stands_still_is_closed(serve: Serve) -> None:
    server = await serve(write_s=0.3)
    async with server.connected() as client:
        await client.get("/large")
        await wait_until(lambda: server.app.ended == 1)
        await wait_until(lambda: len(server.table) == 0)


async def test_a_slow_reader_gets_the_whole_response(serve: Serve) -> None:
    server = await serve(write_s=2.0)
    async with server.connected() as client:
        await client.get("/large")
        await client.head()
        left = 64 * KIB**2
        while left:
            left -= len(await client._reader.read(4 * KIB**2))
            await asyncio.sleep(0.01)


async def test_a_response_has_an_end(serve: Serve) -> None:
    server = await serve(response_s=0.3)
    async with server.connected() as client:
        await client.get("/endless")
        assert (await client.end()).startswith(b"HTTP/1.1 200")
    await wait_until(lambda: server.app.ended == 1)


async def test_a_pipelined_body_is_no_part_of_its_response(serve: Serve) -> None:
    server = await serve(response_s=LONG_S)
    async with server.connected() as client:
        await client.send(b"GET /slow HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
        await wait_until(lambda: any(connection.pipeline for connection in server.table._open))
        server.app.gate.set()
        assert await client.answer() == b"ok"
        await _answers_after_the_body(server, client)


async def test_a_late_body_does_not_shorten_the_next_response(serve: Serve) -> None:
    server = await serve(response_s=LONG_S)
    async with server.connected() as client:
        await client.send(b"POST /unread HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
        assert await client.answer() == b"ok"
        await client.send(b"aPOST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
        await wait_until(lambda: any(not connection.cycle.response_complete for connection in server.table._open))
        await _answers_after_the_body(server, client)


async def _answers_after_the_body(server: Server, client: Client) -> None:
    """The request's time isn't up as long as its body hasn't arrived."""
    (connection,) = server.table._open
    connection.check(asyncio.get_running_loop().time() + 2 * LONG_S)
    await client.send(b"a")
    assert await client.answer() == b"ok"


async def test_silent_connections_give_way_the_oldest_first(serve: Serve) -> None:
    server = await serve(connections=10)
    async with server.connected() as first, server.connected() as second:
        await first.get("/slow")
        await wait_until(lambda: len(server.table) == 2)
        others = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(40)]
        assert await second.end() == b""
        async with server.connected() as new:
            await new.get("/")
            assert await new.answer() == b"ok"
        assert len(server.table) <= 10
        server.app.gate.set()
        assert await first.answer() == b"ok"
        for _, writer in others:
            writer.transport.abort()


async def test_an_address_closes_its_own_connections(serve: Serve) -> None:
    server = await serve(connections=20)
    async with server.connected("127.0.0.2") as bystander:
        others = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)]
        await wait_until(lambda: len(server.table) == 11)
        await bystander.get("/")
        assert await bystander.answer() == b"ok"
        for _, writer in others:
            writer.transport.abort()


async def test_only_probes_are_answered_when_all_are_busy(serve: Serve) -> None:
    server = await serve(connections=4)
    async with server.connected() as one, server.connected() as two:
        await one.get("/slow")
        await two.get("/slow")
        await wait_until(lambda: len(server.table) == 2)
        await asyncio.sleep(0.1)
        async with server.connected() as other:
            await other.get("/")
            assert await other.status() == 503
        async with server.connected() as probe:
            await probe.get("/health")
            assert await probe.answer() == b"ok"
        server.app.gate.set()
        assert await one.answer() == await two.answer() == b"ok"


async def test_incomplete_headers_have_a_common_limit(serve: Serve) -> None:
    server = await serve(pending_bytes=256 * KIB)
    clients = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(32)]
    for _, writer in clients:
        writer.write(GET + b"a: " + bytes(b"a" * 32 * KIB))
    await wait_until(lambda: 0 < len(server.table) <= 8)
    async with server.connected() as client:
        await client.get("/")
        assert await client.answer() == b"ok"
    for _, writer in clients:
        writer.transport.abort()


def test_connections_leave_room_for_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for files, most in ((1500, 750), (200, 100), (resource.RLIM_INFINITY, 4096), (10**6, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert 16 <= find_connection_limit() <= most
