"""Attacks on a running server, one after another, while someone else asks: the bystander must not notice.

Each attack is a row of ``ATTACKS``: a coroutine that gets an ``Attacker`` and takes about ``ATTACK_S``. The bystander's
slowest request and the growth of each process's memory are printed for each (``pytest -s``).
"""

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from processes import Server, serving

from minigpt4_serve.process_tree import descendants
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

# Attackers and bystander share an address. Its oldest idle connections are closed for new ones, maybe one of the
# bystander's.
pytestmark = [pytest.mark.nightly, pytest.mark.ray, pytest.mark.e2e]

MIB = 2**20
ATTACK_S = 12.0
ASK_EVERY_S = 0.2
MOST_S = 10.0
"""Generous: a machine under load. The attacks took 20 to 70 s from a request before there were limits."""
MOST_GROWTH = 700 * MIB
"""Of all processes together; each attack took 1 to 4 GB before. An engine's cache is touched only as it fills."""
OPEN_FILES = 1500
_PIECE = 64 * 2**10
CHAT = "/v1/chat/completions"


@dataclass
class Attacker:
    """What an attack works with.

    Attributes:
        url: of the server.
        key: of the attacker; other keys are the bystander's.
    """

    url: httpx.URL
    key: str

    async def connect(self, receive_buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, (self.url.host, self.url.port))
        return await asyncio.open_connection(sock=sock, limit=4096)

    def head(self, method: str, path: str, *headers: str) -> bytes:
        """The beginning of a request with the attacker's key, up to the blank line."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self.key}", *headers]
        return "".join(f"{line}\r\n" for line in lines).encode()

    async def pour(self, start: bytes, piece: bytes, total: int = 200 * MIB) -> None:
        """Send ``start`` and then ``piece`` again and again, until the server closes the connection."""
        _, writer = await self.connect()
        block = piece * (MIB // len(piece))
        with contextlib.suppress(ConnectionError):
            writer.write(start)
            for _ in range(total // len(block)):
                writer.write(block)
                await writer.drain()
        writer.transport.abort()

    async def hold(self, count: int, data: bytes, receive_buffer: int | None = None) -> None:
        """Send ``data`` on ``count`` connections and read nothing, until the attack's time is over."""

        async def send() -> None:
            with contextlib.suppress(OSError):
                _, writer = await self.connect(receive_buffer)
                writers.append(writer)
                for begin in range(0, len(data), _PIECE):
                    writer.write(data[begin : begin + _PIECE])
                    await writer.drain()
                await asyncio.sleep(2 * ATTACK_S)

        writers: list[asyncio.StreamWriter] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ATTACK_S):
                await asyncio.gather(*(send() for _ in range(count)))
        for writer in writers:
            writer.transport.abort()


Attack = Callable[[Attacker], Awaitable[None]]

_NO_KEY = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def _unread(attacker: Attacker) -> bytes:
    fields = {"input": "Hello", "stream": True, "max_output_tokens": 4, "metadata": {"a": "x" * 3_000_000}}
    body = json.dumps(fields).encode()
    return attacker.head("POST", "/v1/responses", f"Content-Length: {len(body)}") + b"\r\n" + body


def _many_health_checks(attacker: Attacker) -> Awaitable[None]:
    async def ask(until: float) -> None:
        reader, writer = await attacker.connect()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while time.monotonic() < until:
                writer.write(_NO_KEY + b"\r\n")
                await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def all_ask() -> None:
        await asyncio.gather(*(ask(time.monotonic() + ATTACK_S / 2) for _ in range(50)))

    return all_ask()


ATTACKS: dict[str, Attack] = {
    "headers without end": lambda one: one.pour(_NO_KEY, b"a: b\r\n"),
    "a header without end": lambda one: one.pour(_NO_KEY + b"a: ", b"a"),
    "an address without end": lambda one: one.pour(b"GET /", b"a"),
    "trailers after a 401": lambda one: one.pour(_CHUNKED + b"0\r\n", b"a: b\r\n"),
    "chunk extensions without end": lambda one: one.pour(_CHUNKED + b"1;", b"a"),
    "chunks of one byte": lambda one: one.pour(_CHUNKED, b"1\r\na\r\n"),
    "a body after a 401": lambda one: one.pour(_CHUNKED + b"fffffff\r\n", b"a"),
    "1,600 silent connections": lambda one: one.hold(1600, b""),
    "1,600 beginnings of headers": lambda one: one.hold(1600, _NO_KEY + b"a: " + b"a" * 60_000),
    "160 answers that no one reads": lambda one: one.hold(160, _unread(one), receive_buffer=1024),
    "300 bodies of 8 MiB": lambda one: one.hold(
        300, one.head("POST", CHAT, f"Content-Length: {8 * MIB + 1}") + b"\r\n" + bytes(8 * MIB)
    ),
    "50 clients asking for /health": _many_health_checks,
}


@dataclass
class Bystander:
    """Asks every 0.2 s with a key of its own, each time on a new connection."""

    url: httpx.URL
    key: str
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def _ask(self) -> None:
        began = time.monotonic()
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
                answer = await client.post(CHAT, json=body, headers={"authorization": f"Bearer {self.key}"})
                health = await client.get("/health")
            if (answer.status_code, health.status_code) != (200, 200):
                self.failures.append(f"{answer.status_code} {answer.text[:200]}, /health {health.status_code}")
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
        self.seconds.append(time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        async def keep_asking() -> None:
            async with asyncio.TaskGroup() as group:
                while not over.is_set():
                    group.create_task(self._ask())
                    await asyncio.sleep(ASK_EVERY_S)

        over = asyncio.Event()
        task = asyncio.create_task(keep_asking())
        try:
            yield
        finally:
            over.set()
            await task


class Memory:
    """The largest resident memory of each process of a server, in bytes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.before = self._read()
        self.most = dict(self.before)

    def _read(self) -> dict[tuple[int, str], int]:
        found: dict[tuple[int, str], int] = {}
        for pid in (self._server.process.pid, *descendants(self._server.process.pid)):
            with contextlib.suppress(OSError, IndexError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[pid, title.strip()[:48]] = pages * 4096
        return found

    async def watch(self) -> None:
        while True:
            for process, size in self._read().items():
                self.most[process] = max(size, self.most.get(process, 0))
            await asyncio.sleep(0.1)

    @property
    def growth(self) -> dict[str, int]:
        """MiB by process, those that grew."""
        grown = {name: (size - self.before.get((pid, name), size)) // MIB for (pid, name), size in self.most.items()}
        return {name: size for name, size in grown.items() if size > 0}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server that may open few files, and its keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    add_key(file, "first", KeyLimits())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, limits[1]), limits[1]))  # attackers have more than the server
    with serving("--keys-file", str(file), open_files=OPEN_FILES) as server:
        yield server, file
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_bystander_does_not_notice(attacked: tuple[Server, Path], name: str) -> None:
    server, file = attacked
    url = httpx.URL(server.url)
    bystander = Bystander(url, add_key(file, f"bystander, {name}", KeyLimits()))
    attacker = Attacker(url, add_key(file, f"attacker, {name}", KeyLimits()))
    await asyncio.sleep(1.5)  # keys are read again once a second
    memory = Memory(server)
    watching = asyncio.create_task(memory.watch())
    async with bystander.asking():
        await asyncio.sleep(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4 * ATTACK_S):
                await ATTACKS[name](attacker)
        await asyncio.sleep(1)
    watching.cancel()
    slowest = max(bystander.seconds)
    print(f"\n{name}: {len(bystander.seconds)} requests, slowest {slowest:.2f} s, growth in MiB: {memory.growth}")
    assert not bystander.failures
    assert slowest < MOST_S
    assert sum(memory.growth.values()) < MOST_GROWTH // MIB
