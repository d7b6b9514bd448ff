"""Servers by others: what they leave out, refuse, or say in their own way must not stop an agent from seeing."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from drawing import draw, encode

from minigpt4_serve.client import TokenUsage, VisionAnswer, VisionClient
from minigpt4_serve.client.failures import in_words
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.pictures import Picture

DATA = encode(draw())
PICTURE = Picture(hashlib.sha256(DATA).hexdigest(), DATA)
SECRET = "sk-upstream-1"


@dataclass
class Reply:
    """One HTTP answer, byte by byte: ``cut`` leaves before its end, ``stall`` says nothing more."""

    body: bytes
    status: str = "200 OK"
    kind: str = "application/json"
    headers: str = ""
    cut: bool = False
    stall: bool = False


@dataclass
class Wire:
    """A server that speaks exactly as the table says, and keeps the bodies it was sent."""

    models: Reply
    chat: list[Reply]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")]
        body = await reader.readexactly(lengths[0]) if lengths else b""
        reply = self.models
        if b"/models" not in head.split(b"\r\n")[0]:
            self.bodies.append(json.loads(body))
            reply = self.chat.pop(0)
        length = len(reply.body) + (9 if reply.cut or reply.stall else 0)
        writer.write(
            f"HTTP/1.1 {reply.status}\r\ncontent-type: {reply.kind}\r\ncontent-length: {length}\r\n"
            f"connection: close\r\n{reply.headers}\r\n".encode()
            + reply.body
        )
        await writer.drain()
        if reply.stall:
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def serving(models: Reply, *chat: Reply) -> AsyncIterator[Wire]:
    wire = Wire(models, list(chat))
    answering: list[asyncio.Task[None]] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.create_task(wire.answer(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield wire
        await asyncio.gather(*answering)


async def ask(wire: Wire, **settings: Any) -> VisionAnswer:
    return await VisionClient(wire.url, **{"max_wait_s": 0, **settings}).ask("Q", [PICTURE])


def as_json(value: Any, status: str = "200 OK", **options: Any) -> Reply:
    return Reply(json.dumps(value).encode(), status, **options)


def stream(*chunks: Any, done: bool = True, **options: Any) -> Reply:
    lines = [chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    text = "".join(lines) + ("data: [DONE]\n\n" if done else "")
    return Reply(text.encode(), kind="text/event-stream", **options)


def chunk(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def coded(code: str, status: str, **options: Any) -> Reply:
    return as_json({"error": {"message": SECRET, "code": code}}, status, **options)


LISTED = as_json({"object": "list", "data": [{"id": "theirs", "object": "model"}]})
WORDS = chunk({"content": "a disc"})
END = chunk({}, "stop")
WHOLE = {"choices": [{"message": {"role": "assistant", "content": "a disc"}, "finish_reason": "stop"}]}
FINE = stream(WORDS, END)

UNDERSTOOD: dict[str, tuple[Reply, Reply]] = {
    "with everything": (LISTED, stream(chunk({"role": "assistant", "content": ""}), WORDS, END)),
    "no list of models": (as_json({"detail": "Not Found"}, "404 Not Found"), FINE),
    "a list that may not be asked for": (as_json({}, "405 Method Not Allowed"), FINE),
    "an empty list": (as_json({"data": []}), FINE),
    "a bare list": (as_json([{"id": "theirs"}]), FINE),
    "a web page for a list": (Reply(b"<html>", kind="text/html"), FINE),
    "no stream": (LISTED, as_json(WHOLE)),
    "no finish reason": (LISTED, stream(WORDS)),
    "no end mark": (LISTED, stream(WORDS, END, done=False)),
    "empty pieces": (LISTED, stream({"id": "1"}, {"choices": []}, chunk(None), chunk({"content": None}), WORDS, END)),
    "usage of other shapes": (LISTED, stream(WORDS, {**END, "usage": []}, {"choices": [], "usage": {}})),
    "timings of another shape": (LISTED, stream({**WORDS, "timings": "fast"}, END)),
    "comments and other line ends": (LISTED, stream(": wait\r\n\r\n", f"data: {json.dumps(WORDS)}\r\n\r\n", END)),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_understood(name: str) -> None:
    async with serving(*UNDERSTOOD[name]) as wire:
        answer = await ask(wire)
        assert answer.text == "a disc"
        assert isinstance(wire.bodies[0]["model"], str)


async def test_usage_without_details() -> None:
    used = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    async with serving(LISTED, stream(WORDS, {**END, "usage": used})) as wire:
        assert (await ask(wire)).usage == TokenUsage(prompt_tokens=3, completion_tokens=2)


async def test_an_answer_that_the_server_cut_is_marked() -> None:
    async with serving(LISTED, stream(WORDS, chunk({}, "length"))) as wire:
        answer = await ask(wire)
        assert answer.truncated
        assert "was longer" in answer.for_model()


@pytest.mark.parametrize(
    "refusal",
    [
        as_json({"error": {"message": "Unsupported value: 'temperature' does not support 0"}}, "400 Bad Request"),
        as_json({"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs"}]}, "422 Unprocessable Entity"),
    ],
)
async def test_what_a_server_does_not_know_is_left_out_from_then_on(refusal: Reply) -> None:
    also = as_json({"detail": "stream_options is not permitted"}, "422 Unprocessable Entity")
    async with serving(LISTED, refusal, also, FINE, FINE) as wire:
        client = VisionClient(wire.url)
        assert (await client.ask("A", [PICTURE])).text == "a disc"
        assert (await client.ask("B", [PICTURE])).text == "a disc"
        options = [sorted(set(body) & {"temperature", "stream_options"}) for body in wire.bodies]
        assert options == [["stream_options", "temperature"], ["stream_options"], [], []]


_BAD = "400 Bad Request"
FAILED: dict[str, tuple[Callable[[], Reply], str]] = {
    "cut in the middle": (lambda: stream(WORDS, done=False, cut=True), "can't be reached"),
    "cut before the first piece": (lambda: stream(done=False, cut=True), "can't be reached"),
    "silent after the first piece": (lambda: stream(WORDS, done=False, stall=True), "in time"),
    "a web page": (lambda: Reply(b"<html>hi</html>", kind="text/html"), "no answer"),
    "not JSON": (lambda: stream("data: {not json\n\n"), "can't be understood"),
    "not even an object": (lambda: stream("data: 5\n\n"), "can't be understood"),
    "a list for a completion": (lambda: as_json([WHOLE]), "can't be understood"),
    "an error with status 200": (lambda: as_json({"error": {"message": SECRET}}), "no answer"),
    "an error inside the stream": (lambda: stream(WORDS, {"error": {"message": SECRET}}), "failed while answering"),
    "an error that is a text": (lambda: stream(WORDS, {"error": SECRET}), "failed while answering"),
    "no words": (lambda: stream(chunk({"content": " \n"}), END), "other words"),
    "a code that is a number": (lambda: as_json({"error": {"message": SECRET, "code": 400}}, _BAD), "refused this"),
    "a refusal in plain text": (lambda: Reply(SECRET.encode(), "503 Busy", "text/plain"), "failed while answering"),
    "a deadline": (lambda: coded("deadline_exceeded", "408 Request Timeout"), "time for this request ran out"),
    "a deadline of another server": (lambda: as_json({}, "408 Request Timeout"), "time for this request ran out"),
    "a deadline inside the stream": (
        lambda: stream(WORDS, {"error": {"message": SECRET, "code": "deadline_exceeded"}}),
        "time for this request ran out",
    ),
    "a share that is used up": (
        lambda: coded("rate_limit_exceeded", "429 Busy", headers="retry-after: 43000\r\n"),
        "The key's share .* try again in 12 hours",
    ),
    "busy until a date": (
        lambda: as_json({}, "429 Busy", headers="retry-after: Fri, 01 Jan 2100 00:00:00 GMT\r\n"),
        "busy; try again in",
    ),
}


@pytest.mark.parametrize("name", FAILED)
async def test_failures_are_sentences(name: str) -> None:
    reply, words = FAILED[name]
    async with serving(LISTED, reply()) as wire:
        with pytest.raises(MiniGPT4Error, match=words) as failed:
            await ask(wire, timeout_s=1 if "silent" in name else 60)
        assert SECRET not in failed.value.message


@pytest.mark.parametrize(
    ("wait_s", "words"),
    [
        (0, "1 second"),
        (1.2, "2 seconds"),
        (89.5, "90 seconds"),
        (90, "2 minutes"),
        (3600, "60 minutes"),
        (43000, "12 hours"),
        (86400, "24 hours"),
        (30 * 86400, "30 days"),
    ],
)
def test_waits_in_words(wait_s: float, words: str) -> None:
    assert in_words(wait_s) == words


@pytest.mark.parametrize(("status", "words"), [("401 Unauthorized", "the key"), ("500 Broken", "failed")])
async def test_a_list_that_is_refused_is_an_error(status: str, words: str) -> None:
    async with serving(as_json({}, status), FINE) as wire:
        with pytest.raises(MiniGPT4Error, match=words):
            await ask(wire)
        assert wire.bodies == []
