"""Servers for the tests of the page: the real HTTP application, over the embedded model or over scripted answers."""

import asyncio
import copy
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fakes.openai_replies import Gate
from fakes.openai_requests import ChatRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve.errors import Overloaded
from minigpt4_serve.protocol import Delta, Timings, Usage
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.routes import create_app

__all__ = ["Gate", "ScriptedServer", "run_app", "scripted_server"]

_TIMINGS = Timings(0.01, 0.0, 0.02, 0.03, 0.04, 0.06, 0.1)
_USAGE = Usage(prompt_tokens=52, cached_tokens=40, completion_tokens=14)


Step = str | float | Gate | Delta | Exception
"""Part of an answer: text, a pause in seconds, a wait, a delta as it is, or an error."""
Script = Iterable[Step] | Callable[[ChatRequest], Iterable[Step]]

_request: ContextVar[ChatRequest] = ContextVar("request")


def repeat_question(request: ChatRequest) -> list[Step]:
    text = f"I see {', '.join(request.colors) or 'no picture'}. You asked: {' | '.join(request.questions)}"
    return list(re.split(r"(?<= )", text))


@dataclass
class ScriptedServer:
    """The real application over an engine whose answers are scripted by a word of the question.

    Attributes:
        requests: to chat completions, in order.
        sizes: of their bodies in bytes.
        aborted: requests whose client left before the answer's end.
        failures: raised instead of the next answers, one each.
        running, max_running: answers in progress, now and at most.
    """

    url: str = ""
    requests: list[ChatRequest] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    aborted: list[ChatRequest] = field(default_factory=list)
    failures: deque[Exception] = field(default_factory=deque)
    running: int = 0
    max_running: int = 0
    _scripts: dict[str, Script] = field(default_factory=dict)

    def on_word(self, word: str, script: Script) -> None:
        """Answer questions with this word so."""
        self._scripts[word] = script

    def reset(self) -> None:
        for kept in (self.requests, self.sizes, self.aborted, self.failures):
            kept.clear()
        self._scripts.clear()
        self.max_running = 0

    def script_for(self, request: ChatRequest) -> Iterator[Step]:
        words = request.text.split()
        script = next((self._scripts[word] for word in words if word in self._scripts), repeat_question)
        return iter(script(request) if callable(script) else script)


class _ScriptedEngine:
    """Stands in for the engine client of a ``ChatService``; everything but the answers is the real one's."""

    def __init__(self, real: Any, server: ScriptedServer) -> None:
        self._real = real
        self._server = server
        self.context_length = 2048

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def generate(
        self, prompt: object, sampling: object, *, request_id: str, whole: bool = False
    ) -> AsyncGenerator[Delta]:
        server = self._server
        request = _request.get()
        if server.failures:
            raise server.failures.popleft()
        server.running += 1
        server.max_running = max(server.max_running, server.running)
        complete = False
        try:
            for step in server.script_for(request):
                match step:
                    case str():
                        yield Delta(text=step)
                        await asyncio.sleep(0)
                    case Delta():
                        yield step
                    case Gate():
                        await step.wait()
                    case Exception():
                        complete = True
                        raise step
                    case _:
                        await asyncio.sleep(step)
            complete = True
            yield Delta(finish_reason="stop", usage=_USAGE, timings=_TIMINGS)
        finally:
            server.running -= 1
            if not complete:
                server.aborted.append(request)


class _Recorder:
    """ASGI middleware that keeps the bodies of chat requests."""

    def __init__(self, app: ASGIApp, server: ScriptedServer) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions":
            await self._app(scope, receive, send)
            return
        body = bytearray()

        async def receive_recorded() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    request = ChatRequest(json.loads(bytes(body)), "")
                    self._server.requests.append(request)
                    self._server.sizes.append(len(body))
                    _request.set(request)
            return message

        await self._app(scope, receive_recorded, send)


@contextmanager
def run_app(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """The address of an application under uvicorn on loopback."""
    listening = socket.create_server(("127.0.0.1", port), backlog=256)
    server = uvicorn.Server(uvicorn.Config(app, timeout_keep_alive=600, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def scripted_server(
    service: ChatService, *, boxes: bool = True, keys_file: Path | None = None, port: int = 0
) -> Iterator[ScriptedServer]:
    """The application of a service, with scripted answers instead of its engine's."""
    server = ScriptedServer()
    own = copy.copy(service)
    own.engine = _ScriptedEngine(service.engine, server)  # type: ignore[assignment]
    own.names = ("minigpt4-scripted",)
    own.writes_boxes = boxes
    own.context_length = 2048
    own.settings = service.settings.model_copy(update={"keys_file": keys_file})
    with run_app(_Recorder(create_app(own), server), port) as url:
        server.url = url
        yield server


def queued(ahead: int, expected_s: float | None = None) -> Delta:
    """The empty delta of a request that waits."""
    return Delta(queue_position=ahead, expected_wait_s=expected_s)


def full(retry_after: float) -> Overloaded:
    """The refusal of a full server."""
    return Overloaded("The server is busy.", retry_after=retry_after)
