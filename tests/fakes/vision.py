"""An OpenAI-compatible vision server that answers by script: slow, full, broken, or with minigpt4-serve's extensions.

What it says depends on the last question's words, so many chats can use one server at the same time. It is strict
about what it is sent, and counts what happened.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Reply:
    """How to answer one question."""

    pieces: "list[str] | asyncio.Queue[str | None] | None" = None
    """Default: how many pictures were seen, and the question. A queue is served as it is filled, up to None."""
    delay_s: float = 0.0
    """Before each piece."""
    status: int = 200
    code: str | None = None
    """Of the error, with a status that isn't 200."""
    body: dict[str, Any] | None = None
    """With a status that isn't 200; one with ``code`` is made up if there is none."""
    headers: dict[str, str] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    """Sent before the first piece."""
    finish_reason: str | None = "stop"
    break_after: int | None = None
    """Pieces after which the connection is cut."""
    error_after: int | None = None
    """Pieces after which an error comes as an event of the stream."""
    hold: asyncio.Event | None = None
    """Waited for before the last piece."""
    times: int | None = None
    """How often this reply is given before the default one."""


@dataclass
class Asked:
    """One request as it arrived."""

    body: dict[str, Any]
    key: str

    @property
    def text(self) -> str:
        """The last question's words."""
        return next(part["text"] for part in self.body["messages"][-1]["content"] if part["type"] == "text")

    @property
    def pictures(self) -> list[bytes]:
        """All pictures, oldest first."""
        urls = [
            part["image_url"]["url"]
            for message in self.body["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    @property
    def words(self) -> list[tuple[str, str]]:
        """(role, text) of every message."""
        return [(message["role"], _text(message["content"])) for message in self.body["messages"]]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


class FakeVision:
    """Start with ``async with FakeVision().running() as vision``; ``vision.url`` ends in ``/v1``."""

    def __init__(self, *, model: str = "fake-vision", card: dict[str, Any] | None = None) -> None:
        self.model = model
        self.card = {"max_images": 8, "max_image_bytes": 20 * 2**20} if card is None else card
        self.replies: dict[str, Reply] = {}
        self.default = Reply()
        self.asked: list[Asked] = []
        self.mistakes: list[str] = []
        self.running_now = 0
        self.most_at_once = 0
        self.aborted = 0
        self.completed = 0
        self.url = ""

    def on(self, text: str, reply: Reply) -> None:
        """Answer questions with exactly these words by ``reply``."""
        self.replies[text] = reply

    def about(self, text: str) -> list[Asked]:
        """All requests whose last question had exactly these words."""
        return [asked for asked in self.asked if asked.text == text]

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["FakeVision"]:
        app = web.Application(client_max_size=256 * 2**20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        card = {"id": self.model, "object": "model", "created": 0, "owned_by": "tests", **self.card}
        return web.json_response({"object": "list", "data": [card]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked = Asked(body, request.headers.get("authorization", "").removeprefix("Bearer "))
        self._check(body)
        self.asked.append(asked)
        reply = self.replies.get(asked.text, self.default)
        if reply.times is not None:
            reply.times -= 1
            if reply.times < 0:
                reply = self.default
        if reply.status != 200:
            error = {"message": "SECRET server text", "type": "x", "param": None, "code": reply.code}
            return web.json_response(reply.body or {"error": error}, status=reply.status, headers=reply.headers)
        self.running_now += 1
        self.most_at_once = max(self.most_at_once, self.running_now)
        try:
            response = await self._stream(request, asked, reply)
            self.completed += 1
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.running_now -= 1

    async def _stream(self, request: web.Request, asked: Asked, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **reply.headers})
        await response.prepare(request)
        for comment in reply.comments:
            await response.write(f": {comment}\n\n".encode())
            await asyncio.sleep(reply.delay_s)
        pieces = reply.pieces
        if pieces is None:
            pieces = [f"I see {len(asked.pictures)} picture(s).", f" You asked: {asked.text}"]
        if isinstance(pieces, asyncio.Queue):
            while (said := await pieces.get()) is not None:
                await self._event(response, self._chunk({"content": said}, None))
            pieces = []
        for index, piece in enumerate(pieces):
            if index == reply.break_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if index == reply.error_after:
                await self._event(response, {"error": {"message": "SECRET", "code": reply.code}})
                return response
            await asyncio.sleep(reply.delay_s)
            if reply.hold is not None and index == len(pieces) - 1:
                await reply.hold.wait()
            await self._event(response, self._chunk({"content": piece}, None))
        await self._event(response, self._chunk({}, reply.finish_reason))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _chunk(self, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {
            "id": "x",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": self.model,
            "choices": [choice],
        }

    @staticmethod
    async def _event(response: web.StreamResponse, data: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(data)}\n\n".encode())

    def _check(self, body: dict[str, Any]) -> None:
        roles = [message["role"] for message in body["messages"] if message["role"] != "system"]
        expected = ["user", "assistant"] * len(roles)
        if roles != expected[: len(roles)] or roles[-1] != "user":
            self.mistakes.append(f"roles don't alternate: {roles}")
        if body["model"] != self.model:
            self.mistakes.append(f"asked for model {body['model']}")
        if body.get("stream") is not True:
            self.mistakes.append("not streamed")
        for message in body["messages"]:
            if isinstance(message["content"], list):
                for part in message["content"]:
                    url = part.get("image_url", {}).get("url", "data:image/")
                    if not url.startswith("data:image/"):
                        self.mistakes.append("a picture isn't a data: URL")
