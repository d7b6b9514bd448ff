"""Attacks on a running server, one after another, while someone else asks: the bystander must not notice.

Attackers come from 127.0.0.2, the bystander from 127.0.0.1, as strangers do. Each row of ``ATTACKS`` makes its requests
before the bystander begins to ask. The bystander's slowest request and the growth of all processes' memory are printed
for each, and as a table at the end (``pytest -m nightly -s``).
"""

import asyncio
import base64
import contextlib
import json
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
from costly_images import COSTLY
from drawing import encode
from PIL import Image
from processes import Server, serving

from minigpt4_serve.process_tree import descendants
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

pytestmark = [pytest.mark.nightly, pytest.mark.ray, pytest.mark.e2e]

MIB = 2**20
ATTACK_S = 6.0
MOST_S = 1.5
"""On a machine with nothing else to do. The attacks took 20 to 70 s from a request before there were limits."""
USUAL_S = 0.3
"""The slowest request on such a machine before an attack."""
MOST_GROWTH = 300 * MIB
"""Of all processes together by one request at a time; each took 1 to 4 GB before."""
MOST_GROWTH_OF_MANY = 700 * MIB
"""By hundreds of connections."""
OPEN_FILES = 1500
_PIECE = 64 * 2**10
CHAT = "/v1/chat/completions"
_SLOW_LOOKUPS = """
import socket, time
look_up = socket.getaddrinfo
def slow(host, *args, **kwargs):
    if str(host).startswith("slow"):
        time.sleep(20)
        raise socket.gaierror("no answer")
    return look_up(host, *args, **kwargs)
socket.getaddrinfo = slow
"""
"""A ``sitecustomize`` for the server: hosts whose name server doesn't answer."""


@dataclass
class Attacker:
    """What an attack works with.

    Attributes:
        url: of the server.
        key: of the attacker; other keys are the bystander's.
        statuses: of the responses to ``ask``; 0 where there was none.
    """

    url: httpx.URL
    key: str
    statuses: Counter[int] = field(default_factory=Counter)

    async def connect(self, receive_buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection from an address that isn't the bystander's."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind(("127.0.0.2", 0))
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

    async def ask(self, *bodies: bytes, at_once: int = 1) -> None:
        """Send chat requests, ``at_once`` at a time, each on a connection of its own, and read the responses."""

        async def send(body: bytes) -> None:
            async with room:
                reader, writer = await self.connect()
                with contextlib.suppress(ConnectionError):
                    writer.write(self.head("POST", CHAT, f"Content-Length: {len(body)}") + b"\r\n")
                    for begin in range(0, len(body), MIB):
                        writer.write(body[begin : begin + MIB])
                        await writer.drain()
                words: list[bytes] = []
                with contextlib.suppress(ConnectionError):
                    words = (await reader.readline()).split()
                self.statuses[int(words[1]) if words else 0] += 1
                writer.transport.abort()

        room = asyncio.Semaphore(at_once)
        await asyncio.gather(*map(send, bodies))


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


def _chat(content: object, **fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}).encode()


def _about(*images: bytes, **fields: object) -> bytes:
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    return _chat([{"type": "image_url", "image_url": {"url": url}} for url in urls], **fields)


def _schema(schema: object) -> bytes:
    return _chat("Hello", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


def _costly_images(begin: str) -> list[bytes]:
    """Requests about each costly image whose name begins so."""
    return [_about(make(), timeout=1) for name, make in COSTLY.items() if name.startswith(begin)]


def _at_the_pixel_limit() -> list[bytes]:
    side = (7000, 7000)
    gray = Image.new("I;16", side)
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        _about(encode(gray, compress_level=1)),
        _about(encode(Image.new("RGBA", side), compress_level=1, exif=turned)),
        _about(encode(Image.new("RGB", side), "JPEG", progressive=True)),
        _about(encode(Image.new("LA", side), compress_level=1)),
    ]


_TEXT_BYTES = 57 * 10**6
LARGE_TEXTS = {
    "escapes": b"\\u0041",
    "escaped line breaks": b"\\n",
    "text": b"hello wo",
    "an image's base64 with escaped slashes": b"AAA\\/",
}


def _large(unit: bytes) -> bytes:
    begin = b"data:image/png;base64," if unit.startswith(b"AAA") else b""
    part = {"type": "image_url", "image_url": {"url": "TEXT"}}
    return _chat([part] if begin else "TEXT").replace(b"TEXT", begin + unit * (_TEXT_BYTES // len(unit)))


SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "multipleOf": 999983},
    {"type": "integer", "multipleOf": 9999991},
    {"type": "number", "multipleOf": 0.0000001},
    {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
    {"type": "string", "pattern": "(a?){500}a{500}"},
    {"type": "string", "minLength": 10**9},
    {"type": "array", "items": {"type": "integer"}, "minItems": 10**8},
    {"enum": [f"{n} of many" for n in range(40_000)]},
    {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(8000)}},
    {
        "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(18)} | {"d18": {}},
        "$ref": "#/$defs/d0",
    },
]
TEXTS = [
    "[](" + " " * 4000,
    "{<1><2><3><4>}" + "\n" * 4000 + "x",
    "<p>" * 2000 + "{<1><2>" * 500,
    "<Img>" * 1000 + "<ImageHere>" * 1000,
    "[INST]" * 2000 + "###" * 2000,
    " " * 200_000 + "x",
]

ONE_AT_A_TIME: dict[str, Attack] = {
    **{
        f"costly images: {kind}": lambda one, kind=kind: one.ask(*_costly_images(kind))
        for kind in ("MPF", "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
    },
    "images at the pixel limit": lambda one: one.ask(*_at_the_pixel_limit()),
    **{f"57 MB of JSON: {name}": lambda one, unit=unit: one.ask(_large(unit)) for name, unit in LARGE_TEXTS.items()},
    "57 MB of JSON: one name": lambda one: one.ask(_chat("a", NAME=1).replace(b"NAME", b"x" * _TEXT_BYTES)),
    "schemas": lambda one: one.ask(*map(_schema, SCHEMAS)),
    "texts for expressions": lambda one: one.ask(*map(_chat, TEXTS)),
}
"""Each of their requests may cost no more than one request may."""
MANY: dict[str, Attack] = {
    "six costly images at once": lambda one: one.ask(*_costly_images("GIF"), *_costly_images("JPEG"), at_once=6),
    "50 images at the pixel limit": lambda one: one.ask(
        *(_about(*[encode(Image.new("L", (7000, 7000), n), compress_level=1)] * 5, timeout=1.5) for n in range(10)),
        at_once=5,
    ),
    "seven schemas at once": lambda one: one.ask(
        *(_schema({"type": "integer", "multipleOf": 9_999_991 + n}) for n in range(7)),
        *(_schema({"type": "string", "pattern": f"({n}a{{1,900}}){{1,900}}"}) for n in range(7)),
        at_once=7,
    ),
    "12 hosts that no name server answers for": lambda one: one.ask(
        *(
            _chat([{"type": "image_url", "image_url": {"url": f"https://slow{n}.example/a.png"}}], timeout=2)
            for n in range(12)
        ),
        at_once=12,
    ),
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
ATTACKS: Mapping[str, Attack] = ONE_AT_A_TIME | MANY


@dataclass
class Bystander:
    """A process that asks with a key of its own, see ``tests/bystander.py``.

    Attributes:
        requests: when each was sent, its seconds, and what is wrong with its response.
    """

    url: httpx.URL
    key: str
    requests: list[tuple[float, float, str | None]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        script = Path(__file__).parents[1] / "bystander.py"
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, str(self.url), self.key, limit=4 * MIB, **pipes
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"asking\n"
        try:
            yield
        finally:
            printed, _ = await process.communicate(b"")
            self.requests += json.loads(printed)

    def slowest(self, since: float, until: float) -> float:
        """The seconds of the slowest request sent between two times."""
        return max(seconds for began, seconds, _ in self.requests if since <= began < until)


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


@dataclass
class Attacked:
    """A server that may open few files.

    Attributes:
        keys: of the bystander and of the attacker, by attack.
        rows: of the table at the end.
    """

    server: Server
    keys: dict[str, tuple[str, str]]
    rows: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    file = folder / "keys.json"
    keys = {
        name: (add_key(file, f"bystander, {name}", KeyLimits()), add_key(file, f"attacker, {name}", KeyLimits()))
        for name in ATTACKS
    }
    (folder / "sitecustomize.py").write_text(_SLOW_LOOKUPS)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, limits[1]), limits[1]))  # attackers have more than the server
    options = ("--keys-file", str(file), "--allow-host", "*")
    with serving(*options, open_files=OPEN_FILES, PYTHONPATH=str(folder)) as server:
        one = Attacked(server, keys)
        asyncio.run(_warm_up(httpx.URL(server.url), keys))
        yield one
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print("\n\nload, slowest before, slowest, growth of memory, attack", *one.rows, sep="\n")


async def _warm_up(url: httpx.URL, keys: dict[str, tuple[str, str]]) -> None:
    """Fill what is kept: the cache of the engine, allocators."""
    key = next(iter(keys.values()))[0]
    async with Bystander(url, key).asking():
        await asyncio.sleep(3)
    large = _about(encode(Image.new("RGB", (3000, 3000), "blue"), "JPEG"))
    await Attacker(url, key).ask(large, _chat("Hello", max_tokens=512, min_tokens=500), at_once=2)


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_bystander_does_not_notice(attacked: Attacked, name: str) -> None:
    url = httpx.URL(attacked.server.url)
    bystander_key, attacker_key = attacked.keys[name]
    bystander = Bystander(url, bystander_key)
    attacker = Attacker(url, attacker_key)
    attack = ATTACKS[name](attacker)
    memory = Memory(attacked.server)
    watching = asyncio.create_task(memory.watch())
    async with bystander.asking():
        await asyncio.sleep(2.5)
        begin = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10 * ATTACK_S):
                await attack
        await asyncio.sleep(0.5)
    watching.cancel()
    before = bystander.slowest(0, begin - 1)
    slowest = bystander.slowest(begin - 0.5, inf)
    # On a busy machine everything takes longer.
    busy = max(1.0, before / USUAL_S, os.getloadavg()[0] / (os.cpu_count() or 1))
    growth = sum(memory.growth.values())
    row = f"{busy:8.1f} {before:8.2f} s {slowest:8.2f} s {growth:8} MiB  {name}"
    attacked.rows.append(row)
    print(f"\n{row} {memory.growth} {dict(attacker.statuses)}")
    assert [wrong for _, _, wrong in bystander.requests if wrong] == []
    assert slowest < MOST_S * busy
    assert growth < (MOST_GROWTH if name in ONE_AT_A_TIME else MOST_GROWTH_OF_MANY) // MIB
    assert 0 not in attacker.statuses
