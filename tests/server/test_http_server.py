"""An HTTP process's two ways to end: with the owner of the socket, and while a successor takes over."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from waiting import wait_until

from minigpt4_serve.server.http import server as server_module
from minigpt4_serve.server.http.server import HttpServer
from minigpt4_serve.server.http.shared_socket import SharedSocket, receive_socket

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Windows can't share sockets")

LONG_S = 600.0  # a time that no test waits for


class GatedApp:
    """Answers with its name; ``/slow`` only half of it until ``gate`` is set."""

    def __init__(self, name: bytes = b"first.") -> None:
        self.name = name
        self.gate = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(self.name)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        half = len(self.name) // 2
        await send({"type": "http.response.body", "body": self.name[:half], "more_body": True})
        if scope["path"] == "/slow":
            await self.gate.wait()
        await send({"type": "http.response.body", "body": self.name[half:]})


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await self._writer.drain()

    async def head(self) -> bytes:
        """Status line and headers of the answer, in lower case."""
        return (await self._reader.readuntil(b"\r\n\r\n")).lower()

    async def body(self, length: int) -> bytes:
        return await self._reader.readexactly(length)

    async def rest(self) -> bytes:
        """What arrives until the server closes the connection."""
        async with asyncio.timeout(60):
            return await self._reader.read()


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """The test process's own signal handlers are put back: uvicorn installs its own."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def long_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that close do so for another reason than the timeout of idle ones."""
    monkeypatch.setattr(server_module, "_IDLE_S", LONG_S)


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[SharedSocket]:
    shared = SharedSocket("127.0.0.1", 0, tmp_path / "socket")
    yield shared
    await asyncio.to_thread(shared.drain, 60)


@pytest.fixture
def port(shared: SharedSocket) -> int:
    listening, owner = receive_socket(shared.path)
    with listening, owner:
        return int(listening.getsockname()[1])


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def _started(application: GatedApp, shared: SharedSocket, drain_s: float = LONG_S) -> HttpServer:
    server = HttpServer(application, shared.path, drain_s=drain_s, keep_alive_s=LONG_S)
    server.start()
    return server


def _is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_idle_connections_close_at_once_on_stop(shared: SharedSocket, port: int) -> None:
    _started(GatedApp(), shared)
    async with _connected(port) as unused, _connected(port) as idle:
        await idle.send("/")
        await idle.head()
        assert await idle.body(6) == b"first."
        counts: list[int] = []
        stopping = asyncio.create_task(asyncio.to_thread(shared.drain, LONG_S, counts.append))
        assert (await idle.rest(), await unused.rest()) == (b"", b"")
        assert await stopping
        assert counts == []


async def test_answers_in_progress_survive_the_stop(shared: SharedSocket, port: int) -> None:
    application = GatedApp()
    _started(application, shared)
    async with _connected(port) as client:
        await client.send("/slow")
        assert b" 200 " in await client.head()
        assert await client.body(3) == b"fir"
        counts: list[int] = []
        stopping = asyncio.create_task(asyncio.to_thread(shared.drain, LONG_S, counts.append))
        await wait_until(lambda: _is_refused(port) and bool(counts))
        assert counts == [1], "the number of answers is reported while they are finished"
        assert not stopping.done()
        application.gate.set()
        assert await client.rest() == b"st."
        assert await stopping
        assert counts == [1]


async def test_answers_of_all_processes_are_counted(shared: SharedSocket, port: int) -> None:
    applications = [GatedApp(), GatedApp()]
    servers = [_started(applications[0], shared)]
    async with _connected(port) as first, _connected(port) as second, _connected(port) as third:
        for client in (first, second):
            await client.send("/slow")
            await client.head()
        # The second process gets the third request, as the first no longer accepts.
        await servers[0]._close_listeners()
        servers.append(_started(applications[1], shared))
        async with _connected(port) as fourth:
            await fourth.send("/slow")
            await fourth.head()
            counts: list[int] = []
            stopping = asyncio.create_task(asyncio.to_thread(shared.drain, LONG_S, counts.append))
            await wait_until(lambda: bool(counts))
            for application in applications:
                application.gate.set()
            assert await stopping
            assert counts == [3]
            assert await third.rest() == b""


async def test_answers_are_cut_off_after_the_drain_time(shared: SharedSocket, port: int) -> None:
    _started(GatedApp(), shared, drain_s=0.1)
    async with _connected(port) as client:
        await client.send("/slow")
        await client.head()
        stopping = asyncio.create_task(asyncio.to_thread(shared.drain, LONG_S))
        assert await client.rest() == b"fir"
        assert await stopping


async def test_a_retiring_server_answers_and_closes(shared: SharedSocket, port: int) -> None:
    application = GatedApp()
    server = _started(application, shared)
    async with _connected(port) as slow, _connected(port) as idle:
        await idle.send("/")
        assert b"connection: close" not in await idle.head()
        assert await idle.body(6) == b"first."
        await slow.send("/slow")
        assert b"connection: close" not in await slow.head()
        retiring = asyncio.create_task(server.retire())
        _started(GatedApp(b"second"), shared)
        for _ in range(100):  # turns of the event loop; closing the listeners of the first takes ten
            await asyncio.sleep(0)
        await idle.send("/")
        assert b"connection: close" in await idle.head()
        assert await idle.rest() == b"first."
        async with _connected(port) as new:
            await new.send("/")
            await new.head()
            assert await new.body(6) == b"second"
        assert not retiring.done()
        application.gate.set()
        assert await slow.body(6) == b"first."
        await slow.send("/")
        assert b"connection: close" in await slow.head()
        assert await slow.rest() == b"first."
        await retiring


async def test_no_request_is_lost_while_servers_retire(shared: SharedSocket, port: int) -> None:
    server = _started(GatedApp(b"0"), shared)
    over = asyncio.Event()
    bodies: list[bytes] = []

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            answer = await client.get("/")
            assert answer.status_code == 200
            bodies.append(answer.content)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        asking = [asyncio.create_task(keep_asking(client)) for _ in range(8)]
        for number in (b"1", b"2", b"3"):
            answered = len(bodies)
            await wait_until(lambda answered=answered: len(bodies) > answered + 20)  # type: ignore[misc]
            successor = _started(GatedApp(number), shared)
            await server.retire()
            server = successor
        await wait_until(lambda: bodies[-1] == b"3")
        over.set()
        await asyncio.gather(*asking)
    assert set(bodies) == {b"0", b"1", b"2", b"3"}


async def test_retiring_waits_seconds_for_idle_connections(
    shared: SharedSocket, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_IDLE_S", 0.1)
    server = _started(GatedApp(), shared)
    async with _connected(port) as idle:
        await idle.send("/")
        await idle.head()
        await server.retire()


async def test_an_idle_connection_closes_after_its_time(shared: SharedSocket, port: int) -> None:
    HttpServer(GatedApp(), shared.path, drain_s=LONG_S, keep_alive_s=1).start()
    async with _connected(port) as idle:
        await idle.send("/")
        await idle.head()
        assert await idle.rest() == b"first."  # until the end of the connection
