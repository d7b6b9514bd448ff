"""Requests over bare sockets: a client that is cheap and costs the same for every server."""

import asyncio
import contextlib
import io
import json
import random
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from minigpt4_serve.images import to_data_url

__all__ = ["StreamedAnswer", "chat_bodies", "first_turns", "send", "send_chat", "stream_chat"]

_READ_BYTES = 65_536
_TAIL_BYTES = 4_000  # of a stream: more than its last event, which has the usage


def chat_bodies(count: int, turns: int, tokens: int, seed: int) -> list[list[bytes]]:
    """JSON bodies of ``count`` chats of ``turns`` turns, each chat about an image of its own.

    Every answer has ``tokens`` tokens unless a trained model stops earlier.
    """
    rng = random.Random(seed)
    chats = []
    for _ in range(count):
        image = {"type": "image_url", "image_url": {"url": _image_url(rng)}}
        messages: list[dict[str, Any]] = []
        bodies = []
        for turn in range(turns):
            text = {"type": "text", "text": f"Question {turn}: what is it?"}
            messages.append({"role": "user", "content": [text] if turn else [image, text]})
            body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
            body |= {"max_tokens": tokens, "min_tokens": tokens, "temperature": 1.0, "seed": turn}
            bodies.append(json.dumps(body).encode())
            messages.append({"role": "assistant", "content": "It is a circle."})
        chats.append(bodies)
    return chats


def first_turns(count: int, tokens: int, seed: int) -> list[bytes]:
    """JSON bodies of ``count`` chats of one turn."""
    return [bodies[0] for bodies in chat_bodies(count, 1, tokens, seed)]


def _image_url(rng: random.Random) -> str:
    """A PNG of a disc in random colors, as a data URL."""
    image = Image.new("RGB", (224, 224), tuple(rng.randrange(256) for _ in range(3)))
    ImageDraw.Draw(image).ellipse((60, 60, 160, 160), fill=tuple(rng.randrange(256) for _ in range(3)))
    image.save(file := io.BytesIO(), "PNG")
    return to_data_url(file.getvalue())


@contextlib.asynccontextmanager
async def send(port: int, method: str, path: str, body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """Send one request on its own connection. Yields the unparsed response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        yield reader
    finally:
        writer.close()


def send_chat(port: int, body: bytes) -> contextlib.AbstractAsyncContextManager[asyncio.StreamReader]:
    """Send a request for a chat completion; yields the unparsed response."""
    return send(port, "POST", "/v1/chat/completions", body)


@dataclass(frozen=True)
class StreamedAnswer:
    """Counts of one streamed answer. ``ttft`` in seconds; ``events`` are those with text."""

    ttft: float
    events: int
    completion_tokens: int
    prompt_tokens: int
    cached_tokens: int


async def stream_chat(port: int, body: bytes) -> StreamedAnswer:
    """Request an answer and read it to its end.

    Raises:
        SystemExit: the response isn't a complete stream with its usage; with the end of the response.
    """
    began = time.perf_counter()
    first = None
    events = 0
    tail = b""
    async with send_chat(port, body) as response:
        while chunk := await response.read(_READ_BYTES):
            if first is None and b'"delta"' in chunk:
                first = time.perf_counter()
            events += len(re.findall(rb'"content": ?"', chunk))
            tail = (tail + chunk)[-_TAIL_BYTES:]
    usage = re.search(rb'"usage": ?(\{.*?\}\})', tail)
    if usage is None or first is None:
        raise SystemExit(f"The server on port {port} answered: {tail[-500:]!r}")
    counts = json.loads(usage[1])
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return StreamedAnswer(first - began, events, counts["completion_tokens"], counts["prompt_tokens"], cached)
