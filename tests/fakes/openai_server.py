"""The fake OpenAI-compatible server of all tests: strict about requests, with scripted answers.

It listens on loopback on a thread of its own, so synchronous tests, event loops and other processes can use it.
Starting and stopping take milliseconds.
"""

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from aiohttp import web
from fakes.openai_replies import (
    SECRET,
    TIMINGS,
    USAGE,
    Answer,
    Cut,
    ErrorEvent,
    Feed,
    Gate,
    Reply,
    Step,
    colors,
    count_and_question,
)
from fakes.openai_requests import FIELDS, OPENAI_FIELDS, ChatRequest, chat_mistakes, request_mistakes
from processes import free_port

MODEL = "minigpt4-test"


@dataclass
class OpenAIServer:
    """Use it as a context manager, which fails if clients made mistakes; ``stop`` and ``start`` keep the address.

    A reply is chosen by the last message's whole text, by a word of it, from ``answers``, or is the default, in this
    order.

    Attributes:
        models: names that are listed; others are refused.
        card: more fields of the listed models.
        key: required from clients; others get 401.
        fields: allowed in requests.
        chats: requests must stream and name a listed model, and roles must alternate.
        comments, headers: of every stream.
        path: of the API.
        models_reply: instead of the list of models.
        pages: replies to GET requests of other paths.
        answers: given once each.
        requests: accepted so far.
        aborted: those whose client left before the end of the answer.
        active, max_active: requests being answered, now and at most.
        mistakes: of clients; each was refused.
    """

    models: list[str] = field(default_factory=lambda: [MODEL])
    card: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    fields: frozenset[str] = FIELDS
    chats: bool = True
    default: Reply = field(default_factory=lambda: Reply(colors))
    comments: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/v1"
    models_reply: Reply | None = None
    pages: dict[str, Reply] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    port: int = 0
    requests: list[ChatRequest] = field(default_factory=list, init=False)
    aborted: list[ChatRequest] = field(default_factory=list, init=False)
    active: int = field(default=0, init=False)
    max_active: int = field(default=0, init=False)
    mistakes: list[str] = field(default_factory=list, init=False)
    _scripts: dict[str, tuple[Answer, Iterator[int]]] = field(default_factory=dict, init=False)
    _words: dict[str, Answer] = field(default_factory=dict, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _stopping: bool = field(default=False, init=False)
    _stop: Gate = field(default_factory=Gate, init=False)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Base of the API, ending in ``/v1``."""
        return self.origin + self.path

    def on(self, text: str, answer: Answer, times: int | None = None) -> None:
        """Answer messages with exactly this text, the first ``times`` of them."""
        self._scripts[text] = answer, itertools.count() if times is None else iter(range(times))

    def on_word(self, word: str, answer: Answer) -> None:
        """Answer messages with this word."""
        self._words[word] = answer

    def about(self, text: str) -> list[ChatRequest]:
        """Requests whose last message had exactly this text."""
        return [request for request in self.requests if request.text == text]

    def start(self) -> None:
        self.port = self.port or free_port()
        listening = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self._stopping = False
        self._stop = Gate()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections and cut those that are open."""
        if self._thread is not None:
            self._stopping = True
            self._stop.open()
            self._thread.join(timeout=60)
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None:
            assert not self.mistakes, f"mistakes of clients: {self.mistakes}"

    async def _serve(self, listening: socket.socket) -> None:
        app = web.Application(client_max_size=256 * 2**20, middlewares=[self._recording_failures])
        app.router.add_get(f"{self.path}/models", self._list_models)
        app.router.add_post(f"{self.path}/chat/completions", self._complete)
        app.router.add_get("/{page:.*}", self._page)
        # Zero would mean to wait for ever.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.001, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _recording_failures(self, http: web.Request, handler: Any) -> web.StreamResponse:
        if self.key is not None and http.headers.get("authorization") != f"Bearer {self.key}":
            return _whole(Reply(status=401, code="invalid_api_key"))
        try:
            response: web.StreamResponse = await handler(http)
        except ConnectionError:
            raise
        except Exception as error:
            self.mistakes.append(f"{http.method} {http.path}: {error!r}")
            raise
        return response

    async def _list_models(self, _: web.Request) -> web.StreamResponse:
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "test", **self.card} for name in self.models]
        return _whole(self.models_reply or Reply(body={"object": "list", "data": cards}))

    async def _page(self, http: web.Request) -> web.StreamResponse:
        if http.path not in self.pages:
            raise web.HTTPNotFound
        return _whole(self.pages[http.path])

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        request = ChatRequest(body, http.headers.get("authorization", "").removeprefix("Bearer "))
        if found := self._mistakes_in(body):
            self.mistakes += found
            return _whole(Reply(status=400, body={"error": {"message": str(found), "code": "unknown_parameter"}}))
        if body.get("model") not in (None, *self.models) and self.models_reply is None:
            return _whole(Reply(status=404, code="model_not_found"))
        self.requests.append(request)
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        try:
            return await self._answer(http, request, self._reply_to(request))
        except (asyncio.CancelledError, ConnectionError):
            if not self._stopping:
                self.aborted.append(request)
            raise
        finally:
            self.active -= 1

    def _mistakes_in(self, body: dict[str, Any]) -> list[str]:
        found = list(request_mistakes(body, self.fields))
        return found + list(chat_mistakes(body, self.models)) if self.chats else found

    def _reply_to(self, request: ChatRequest) -> Reply:
        answer, times = self._scripts.get(request.text, (None, iter(())))
        if answer is None or next(times, None) is None:
            answer = next((self._words[word] for word in request.text.split() if word in self._words), None)
        if answer is None:
            answer = self.answers.pop(0) if self.answers else self.default
        return answer if isinstance(answer, Reply) else replace(self.default, chunks=answer)

    async def _answer(self, http: web.Request, request: ChatRequest, reply: Reply) -> web.StreamResponse:
        if reply.hold is not None:
            await reply.hold.wait()
        if not reply.is_stream:
            return _whole(reply)
        head = {"id": "chatcmpl-1", "created": 0, "model": request.body.get("model") or self.models[0]}
        if request.body.get("stream"):
            return await self._stream(http, request, reply, {**head, "object": "chat.completion.chunk"})
        text = "".join([step async for step in _iterate(reply, request) if isinstance(step, str)])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return _whole(
            Reply(
                body={**head, "object": "chat.completion", "choices": [choice], "usage": USAGE, "timings": TIMINGS},
                headers=reply.headers,
            )
        )

    async def _stream(
        self, http: web.Request, request: ChatRequest, reply: Reply, head: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **self.headers, **reply.headers})
        await response.prepare(http)

        async def event(data: dict[str, Any]) -> None:
            await response.write(f"data: {json.dumps(data)}\n\n".encode())

        async def chunk(delta: dict[str, str], reason: str | None = None) -> None:
            await event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        for comment in (*self.comments, *reply.comments):
            await response.write(f": {comment}\n\n".encode())
            await asyncio.sleep(reply.delay_s)
        if not reply.bare:
            await chunk({"role": "assistant", "content": ""})
        async for step in _iterate(reply, request):
            match step:
                case str():
                    await chunk({"content": step})
                case bytes():
                    await response.write(step)
                case dict():
                    await event(step)
                case ErrorEvent():
                    await event({"error": {"message": SECRET, "type": "server_error", "code": step.code}})
                    return response
                case Cut():
                    assert http.transport is not None
                    http.transport.close()
                    return response
        if not reply.bare:
            await chunk({}, reply.finish_reason)
            if (request.body.get("stream_options") or {}).get("include_usage"):
                await event({**head, "choices": [], "usage": USAGE, "timings": TIMINGS})
            await response.write(b"data: [DONE]\n\n")
        return response


async def _iterate(reply: Reply, request: ChatRequest) -> AsyncIterator[Step]:
    """The steps at their times."""
    steps = reply.steps(request)
    while (step := await reply.chunks.get() if isinstance(reply.chunks, Feed) else next(steps, None)) is not None:
        if isinstance(step, Gate):
            await step.wait()
        else:
            await asyncio.sleep(reply.delay_s)
            yield step


def _whole(reply: Reply) -> web.Response:
    body = reply.body
    if body is None:
        body = {"error": {"message": SECRET, "type": "error", "param": None, "code": reply.code}}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return web.Response(body=data, status=reply.status, headers=reply.headers, content_type=reply.content_type)


def vision_server(**script: Any) -> OpenAIServer:
    """For clients that ask about images, streamed or not: it names their colors."""
    more = {"fields": OPENAI_FIELDS, "chats": False, "comments": ("waiting, 2 ahead",)}
    return OpenAIServer(**{**more, **script})


def bots_server(**script: Any) -> OpenAIServer:
    """For bots: it counts the images and repeats the question."""
    more = {"card": {"max_images": 8, "max_image_bytes": 20 * 2**20}, "default": Reply(count_and_question)}
    return OpenAIServer(**{**more, **script})
