"""A scripted server with minigpt4-serve's API: what it answers depends on the words of the last question.

It checks what clients send, can be switched off and on at the same address, and notes who left early.
"""

import asyncio
import base64
import io
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from PIL import Image
from processes import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

_FIELDS = {"model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens", "beams"}
USAGE = {
    "prompt_tokens": 52,
    "completion_tokens": 14,
    "total_tokens": 66,
    "prompt_tokens_details": {"cached_tokens": 40},
}

SCRIPTED = {
    "boxes": "<p>A red disc</p> {<25><25><75><75>} on <p>white paper</p> {<0><0><100><100>}.",
    "markup": (
        "Words with <b>tags</b>, <img src=x onerror=\"document.title='broken in'\">, "
        "<script>document.title='broken in'</script> and ![a picture](http://127.0.0.1:9/outside.png)."
    ),
}
"""Answers to questions that hold the key as a word."""


@dataclass
class ChatServer:
    """The server and what it saw.

    Attributes:
        card: fields of the model's card beside its name.
        requests: bodies of all questions.
        left: words of questions whose asker left before the end.
        gate: a question with the word ``wait`` stands in the line until this is set.
    """

    port: int
    card: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    name: str = "minigpt4-test"
    _running: tuple[uvicorn.Server, threading.Thread] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, always at the same address."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models),
        ]
        listening = socket.create_server(("127.0.0.1", self.port))
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        self._running = server, thread

    def stop(self) -> None:
        """Be gone: connections are refused, open answers are cut."""
        if self._running is None:
            return
        server, thread = self._running
        server.should_exit = True
        thread.join(timeout=60)
        for listening in server.servers:
            listening.close()
        self._running = None

    async def _models(self, _: Request) -> Response:
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "test", **self.card}
        return JSONResponse({"object": "list", "data": [card]})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        assert set(body) <= _FIELDS, set(body) - _FIELDS
        assert body["model"] == self.name
        questions = [texts(message) for message in body["messages"] if message["role"] == "user"]
        pictures = [colour(part) for message in body["messages"] for part in image_parts(message)]
        self.requests.append(body)
        last = questions[-1]
        if "full" in last.split():
            error = {"message": "secret detail", "type": "rate_limit_error", "param": None, "code": "overloaded"}
            return JSONResponse({"error": error}, 429, headers={"retry-after": "61"})
        if "spent" in last.split():
            error = {"message": "secret detail", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
            return JSONResponse({"error": error}, 429, headers={"retry-after": "43000"})
        if "late" in last.split():
            error = {"message": "secret detail", "type": "invalid_request_error", "code": "deadline_exceeded"}
            return JSONResponse({"error": error}, 408)
        headers = {"x-minigpt4-queue-position": "3", "x-minigpt4-expected-wait": "12"} if "wait" in last.split() else {}
        return StreamingResponse(
            self._answer(last, questions, pictures), media_type="text/event-stream", headers=headers
        )

    async def _answer(self, last: str, questions: list[str], pictures: list[str]) -> AsyncIterator[str]:
        asked = last.split()
        try:
            if "wait" in asked:
                while not self.gate.is_set():
                    yield ": waiting, 2 ahead\n\n"
                    await asyncio.sleep(0.1)
            yield _chunk({"role": "assistant", "content": ""})
            if "slow" in asked:
                for number in itertools.count():
                    yield _chunk({"content": f"word{number} "})
                    await asyncio.sleep(0.05)
            text = next((text for key, text in SCRIPTED.items() if key in asked), None)
            text = text or f"I see {', '.join(pictures) or 'no picture'}. You asked: {' | '.join(questions)}"
            for piece in text.split(" "):
                yield _chunk({"content": piece + " "})
                await asyncio.sleep(0.005)
            if "broken" in asked:
                error = {"message": "secret detail", "type": "server_error", "param": None, "code": "engine_failed"}
                yield f"data: {json.dumps({'error': error})}\n\n"
                return
            yield _chunk({}, "stop")
            yield f"data: {json.dumps({'choices': [], 'usage': USAGE, 'timings': {'total_s': 0.4}})}\n\n"
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(last)
            raise


@contextmanager
def chat_server(**card: Any) -> Iterator[ChatServer]:
    """A running server on loopback."""
    server = ChatServer(free_port(), card)
    server.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.stop()


def texts(message: dict[str, Any]) -> str:
    """The words of a message."""
    content = message["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")


def image_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The pictures of a message, and only OpenAI's parts beside them."""
    parts = message["content"] if isinstance(message["content"], list) else []
    assert {part["type"] for part in parts} <= {"text", "image_url"}
    return [part for part in parts if part["type"] == "image_url"]


def colour(part: dict[str, Any]) -> str:
    """The colour in a picture's middle."""
    header, _, payload = part["image_url"]["url"].partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
    assert header == f"data:{Image.MIME[image.format or '']};base64", "the type must be what the bytes are"
    middle = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    names = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue", (255, 255, 0): "yellow"}
    assert isinstance(middle, tuple)
    return names.get(middle[:3], "some colour")


def _chunk(delta: dict[str, Any], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
