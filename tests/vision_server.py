"""A strict stand-in for an OpenAI-compatible vision server: what clients send is checked, answers are scripted."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-test-4f9a1c"

_FIELDS = {"model", "messages", "stream", "stream_options", "temperature", "max_tokens", "stop", "n", "top_p", "seed"}
_FIELDS |= {"max_completion_tokens", "logprobs", "top_logprobs"}


@dataclass
class Refusal:
    """One answer that is an error."""

    status: int
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = f"upstream says {KEY} at /srv/secret/model"
    """Clients must never repeat it."""


@dataclass
class VisionServer:
    """The server's script and what it saw.

    Attributes:
        url: ends in ``/v1``.
        answers: popped one by one: a refusal, a text, or a callable that gets the pictures and the question; when none
            is left, the colours of the pictures' middles are named.
        requests: the bodies that were accepted as well-formed.
    """

    url: str = ""
    key: str | None = None
    models: list[str] = field(default_factory=lambda: ["eyes"])
    answers: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    stream_headers: dict[str, str] = field(default_factory=dict)
    hang: threading.Event = field(default_factory=threading.Event)
    """An answer ``"hang"`` waits until this is set."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client leaves an answer ``"endless"``."""

    def question(self, index: int = -1) -> str:
        """The last text of a request."""
        return _texts(self.requests[index]["messages"][-1])

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        if refusal := self._key_refusal(request):
            return refusal
        body = await request.json()
        unknown = set(body) - _FIELDS
        if unknown:
            return _refuse(Refusal(400, "unknown_parameter", message=f"unknown: {sorted(unknown)}"))
        if body.get("model") not in (None, *self.models):
            return _refuse(Refusal(404, "model_not_found"))
        pictures = [_picture(part) for message in body["messages"] for part in _image_parts(message)]
        self.requests.append(body)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Refusal):
            return _refuse(answer)
        if answer == "hang":
            await _until(self.hang)
        if answer == "endless":
            return StreamingResponse(self._endless(body), media_type="text/event-stream")
        if answer is None:
            answer = " and ".join(_colour(picture) for picture in pictures) or "I see no picture."
        if callable(answer):
            answer = answer(pictures, self.question())
        usage = {
            "prompt_tokens": 40,
            "completion_tokens": 4,
            "total_tokens": 44,
            "prompt_tokens_details": {"cached_tokens": 8},
        }
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            whole = {**_head("chat.completion", body), "choices": [choice], "usage": usage, "timings": {"total_s": 0.5}}
            return JSONResponse(whole)
        return StreamingResponse(
            _events(answer, body, usage), media_type="text/event-stream", headers=self.stream_headers
        )

    async def _endless(self, body: dict[str, Any]) -> AsyncIterator[str]:
        try:
            while not self.hang.is_set():
                yield _event({**_head("chat.completion.chunk", body), "choices": [_choice({"content": "more "}, None)]})
                await asyncio.sleep(0.02)
        finally:
            self.left.set()

    async def list_models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        if refusal := self._key_refusal(request):
            return refusal
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
        return JSONResponse({"object": "list", "data": cards})

    def _key_refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _refuse(Refusal(401, "invalid_api_key"))


@contextmanager
def vision_server(**script: Any) -> Iterator[VisionServer]:
    """A running server on loopback, on a thread of its own."""
    server = VisionServer(**script)
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.list_models),
    ]
    listening = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    config = uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hang.set()
        running.should_exit = True
        thread.join(timeout=60)
        listening.close()


async def _until(event: threading.Event) -> None:
    await asyncio.to_thread(event.wait, 30)


def _events(answer: str, body: dict[str, Any], usage: dict[str, Any]) -> Iterator[str]:
    head = _head("chat.completion.chunk", body)
    cut_off = answer.endswith("<cut>")
    pieces = [piece + " " for piece in answer.removesuffix("<cut>").split(" ")]
    pieces[-1] = pieces[-1][:-1]
    yield ": waiting, 2 ahead\n\n"
    yield _event({**head, "choices": [_choice({"role": "assistant", "content": ""}, None)]})
    for piece in pieces:
        yield _event({**head, "choices": [_choice({"content": piece}, None)]})
    if cut_off:
        yield _event({"error": {"message": f"died with {KEY}", "type": "server_error", "code": "engine_failed"}})
        return
    yield _event({**head, "choices": [_choice({}, "stop")]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _event({**head, "choices": [], "usage": usage, "timings": {"images_s": 0.01, "total_s": 0.5}})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _choice(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def _head(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 0, "model": body.get("model") or "eyes"}


def _refuse(refusal: Refusal) -> Response:
    error = {"message": refusal.message, "type": "error", "param": None, "code": refusal.code}
    return JSONResponse({"error": error}, refusal.status, headers=refusal.headers)


def _image_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    parts = content if isinstance(content, list) else []
    assert {part["type"] for part in parts} <= {"text", "image_url"}, "only OpenAI's parts"
    return [part for part in parts if part["type"] == "image_url"]


def _texts(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")


def _picture(part: dict[str, Any]) -> Image.Image:
    header, _, payload = part["image_url"]["url"].partition(",")
    assert header.startswith("data:image/"), header
    assert header.endswith(";base64"), header
    image = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
    assert Image.MIME[image.format or ""] == header[5:-7], "the type must be what the bytes are"
    return image.convert("RGB")


def _colour(picture: Image.Image) -> str:
    middle = picture.getpixel((picture.width // 2, picture.height // 2))
    names = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue", (255, 255, 0): "yellow"}
    assert isinstance(middle, tuple)
    return names.get(middle[:3], "some colour")
