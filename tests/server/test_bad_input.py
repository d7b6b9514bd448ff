"""Bad input is normal: each of the table's requests gets its status and shape, fast, and leaves nothing behind."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from bad_input import ADDRESSES, BODIES, CHAT, PARAMETERS, PICTURES, Bad, says
from drawing import draw, encode
from serving_app import local_engine, serving, settled

from minigpt4_serve.images.fetch import ImageFetcher
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.image_reader import ImageReader
from minigpt4_serve.settings import EngineSettings

PUBLIC = "93.184.216.34"
TABLE = [*BODIES, *PARAMETERS, *PICTURES, *ADDRESSES]
Served = tuple[httpx.Client, ChatService]


class _Body(httpx.AsyncByteStream):
    """A body that never ends, or never comes."""

    def __init__(self, comes: bool) -> None:
        self._comes = comes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if not self._comes:
                await asyncio.Event().wait()
            yield b"x" * 100_000


def _web(request: httpx.Request) -> httpx.Response:
    """What lies in the internet. A connection to any other address than the checked one fails."""
    assert request.url.host == PUBLIC, "connected to an address that was not checked"
    if request.headers["host"] == "rebinding.example":
        return httpx.Response(302, headers={"location": "/again"})
    redirects = {"/to-private": "https://10.1.2.3/x", "/to-file": "file:///etc/passwd", "/round": "/round"}
    path = request.url.path
    if path in redirects:
        return httpx.Response(302, headers={"location": redirects[path]})
    if path == "/404":
        return httpx.Response(404)
    bodies: dict[str, httpx.AsyncByteStream] = {
        "/endless": _Body(comes=True),
        "/never": _Body(comes=False),
        "/page": httpx.ByteStream(b"<html>"),
    }
    return httpx.Response(200, stream=bodies.get(path, httpx.ByteStream(encode(draw("blue")))))


class _Names:
    """The internet's names; one points elsewhere when it is asked for again. Numbers are the system's affair."""

    def __init__(self) -> None:
        self._asked = 0

    async def __call__(self, host: str, port: int) -> Collection[str]:
        if host == "rebinding.example":
            self._asked += 1
            return [PUBLIC if self._asked % 2 else "127.0.0.1"]
        table = {"pictures.example": [PUBLIC], "inside.example": ["10.0.0.5"], "nowhere.example": []}
        if host in table:
            return table[host]
        found = await asyncio.get_running_loop().getaddrinfo(host, port)
        return [str(entry[4][0]) for entry in found]


class _Fetcher(ImageFetcher):
    """The short timeout applies only where nothing is sent, so a busy machine makes no other case late."""

    async def fetch(self, url: str) -> bytes:
        return await ImageFetcher.fetch(replace(self, timeout_s=0.3 if url.endswith("/never") else 60), url)


@pytest.fixture(scope="module")
def served(small_model: Any) -> Iterator[Served]:
    limits = {
        "max_body_bytes": 2 * 2**20,
        "max_image_bytes": 2**20,
        "max_image_pixels": 10_000_000,
        "max_image_frames": 20,
        "allowed_hosts": ("*",),
    }
    with serving(small_model, engine=EngineSettings(max_running=4), **limits) as (client, service):
        fetcher = _Fetcher(2**20, resolve=_Names(), transport=httpx.MockTransport(_web))
        service._images = ImageReader(service.settings, fetcher)
        yield client, service


def _send(client: httpx.Client, bad: Bad) -> httpx.Response:
    return client.post(bad.path, content=bad.body, headers={"content-type": "application/json"})


def test_the_table_has_enough_cases_and_no_duplicates() -> None:
    assert len([bad for bad in TABLE if bad.status != 200]) >= 60
    assert len({bad.name for bad in TABLE}) == len(TABLE)


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_each_gets_its_status_shape_and_reason(served: Served, bad: Bad) -> None:
    client, _ = served
    # Seconds of computing, in all threads: a machine that is busy with other things takes no longer by this clock.
    computed = time.process_time()
    waited = time.monotonic()
    answer = _send(client, bad)
    computed, waited = time.process_time() - computed, time.monotonic() - waited
    assert answer.status_code == bad.status, answer.text
    assert computed < 1, "a refusal must be cheap"
    assert waited < 60, "a busy machine may take longer than the second that a quiet one takes at most"
    assert answer.headers["x-request-id"]
    if bad.code is None:
        return
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == bad.code
    assert bad.says in error["message"]
    assert error["message"].endswith(".")
    for secret in ("PIL", "Pillow", "Traceback", "passwd", "secret", "pydantic", "httpx", "Errno"):
        assert secret not in answer.text


def test_the_same_holds_for_streams(served: Served) -> None:
    client, _ = served
    for bad in (*PICTURES, *ADDRESSES):
        if bad.status != 200:
            answer = _send(client, Bad(bad.name, bad.body[:-1] + b', "stream": true}'))
            assert answer.status_code == bad.status, bad.name
            assert answer.json()["error"]["code"] == bad.code


def test_afterwards_nothing_is_left_and_the_server_still_answers(served: Served) -> None:
    client, service = served
    for bad in TABLE:  # once before counting: what is made when first needed is made now
        _send(client, bad)
    settled(service)
    files = _files()
    memory = _resident()
    peak = _Peak()
    with peak:
        for bad in TABLE:
            _send(client, bad)
    settled(service)
    assert _files() <= files + 1, "a connection may come and go"
    assert local_engine(service).stats().accepted == 0
    # Bodies of two megabytes as text, bytes and pixels come and go; a bomb that went off would take hundreds.
    assert peak.resident - memory < 150 * 2**20
    assert _resident() - memory < 40 * 2**20
    answer = client.post(CHAT, content=says())
    assert answer.status_code == 200
    assert client.get("/health").status_code == 200


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class _Peak:
    """The most memory held inside a ``with``, looked at every few milliseconds."""

    resident = 0

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.resident = max(self.resident, _resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
