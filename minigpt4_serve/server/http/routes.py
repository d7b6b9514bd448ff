"""The HTTP surface as a plain FastAPI factory: answers, models, health. Knows HTTP and wire types, no Ray.

Errors before the first piece of an answer keep their real status; later ones arrive as an event of the stream.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from math import inf
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from minigpt4_serve import __version__
from minigpt4_serve.errors import DeadlineExceeded, MiniGPT4Error, ModelNotFound, PayloadTooLarge
from minigpt4_serve.protocol import Delta
from minigpt4_serve.server.http.auth import Admission, RequireKey
from minigpt4_serve.server.http.chat_service import ChatService, PreparedChat
from minigpt4_serve.server.http.deadline import before, until
from minigpt4_serve.server.http.error_handlers import install
from minigpt4_serve.server.http.metrics_route import ReadMetrics, add_metrics
from minigpt4_serve.server.http.page import add_page
from minigpt4_serve.server.http.request_log import Meter, RequestLogMiddleware
from minigpt4_serve.server.keys.key_ring import KeyRing
from minigpt4_serve.server.keys.quotas import LocalQuotas, Quotas
from minigpt4_serve.server.openai.chat_request import MAX_BEAMS, ChatCompletionRequest, Message, parse_chat_request
from minigpt4_serve.server.openai.chat_response import ChatCompletion
from minigpt4_serve.server.openai.openapi import described
from minigpt4_serve.server.openai.responses_request import ResponsesRequest, parse_responses_request
from minigpt4_serve.server.openai.responses_response import ResponseAnswer
from minigpt4_serve.settings import ServeSettings

__all__ = ["create_app"]


def create_app(
    service: ChatService,
    quotas: Quotas | None = None,
    meter: Meter | None = None,
    *,
    behind_proxy: bool = False,
    metrics: ReadMetrics | None = None,
) -> FastAPI:
    """The application around one chat service.

    Args:
        quotas: where requests of keys are counted; in this process if not given.
        meter: counts what the application does.
        metrics: gives what ``/metrics`` shows; without it there is no such route.
        behind_proxy: Ray's proxy brings the requests, see ``RequestLogMiddleware``.

    Raises:
        InvalidRequest: the settings name a keys file that can't be read or holds no key.
    """
    settings = service.settings
    keys = KeyRing(settings.keys_file, settings.api_key) if settings.keys_file or settings.api_key else None
    app = FastAPI(title="minigpt4-serve", version=__version__, docs_url="/docs", redoc_url=None)
    started = int(time.time())
    defaults = service.sampling(ChatCompletionRequest(messages=[Message(role="user")]))

    install(app)
    if metrics is not None:
        add_metrics(app, metrics)
    open_paths = add_page(app) if settings.page else frozenset()
    app.add_middleware(RequireKey, keys=keys, quotas=quotas or LocalQuotas(), open_paths=open_paths)

    def card() -> dict[str, Any]:
        return {
            "id": service.name,
            "object": "model",
            "created": started,
            "owned_by": "minigpt4-serve",
            "context_length": service.context_length,
            "image_tokens": service.image_tokens,
            "max_images": service.settings.max_images_per_request,
            "max_image_bytes": service.settings.max_image_bytes,
            "capabilities": {"vision": True, "streaming": True, "max_beams": MAX_BEAMS, "boxes": service.writes_boxes},
            "defaults": {
                "temperature": defaults.temperature,
                "top_p": defaults.top_p,
                "max_tokens": defaults.max_tokens,
            },
        }

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model, with what it can do."""
        return JSONResponse({"object": "list", "data": [card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """The model's card."""
        _check_model(name, service)
        return JSONResponse(card())

    async def answer(request: Request, wanted: ChatCompletionRequest, speak: Speak) -> Response:
        """Ask the engine, and answer in a route's words: whole, or as server-sent events."""
        _check_model(wanted.model, service)
        deadline = asyncio.get_running_loop().time() + min(wanted.timeout or inf, settings.max_request_s)
        admission = Admission.of(request.scope)
        if admission is not None:
            await admission.charge(wanted.num_pictures)
        async with before(deadline):
            chat = await service.prepare(wanted)
        # Not the request's own name: a client may give two requests the same.
        engine_id = uuid.uuid4().hex
        spoken = speak(chat, engine_id)
        deltas = until(service.stream(chat, request_id=engine_id), deadline)
        headers = {"x-minigpt4-dropped-messages": str(chat.dropped_messages)} if chat.dropped_messages else {}
        if not wanted.stream:
            return JSONResponse(await _unless_left(request, spoken.whole(deltas)), headers=headers)
        # The first piece is awaited before the status line is sent: a refusal keeps its own status.
        first = await anext(deltas)
        if first.queue_position is not None:
            headers["x-minigpt4-queue-position"] = str(first.queue_position)
            headers["x-minigpt4-expected-wait"] = f"{first.expected_wait_s or 0:.1f}"
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(spoken.events(first, deltas), media_type="text/event-stream", headers=headers)

    @app.post("/v1/chat/completions", openapi_extra=described(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        """One answer, whole or streamed as server-sent events."""
        service.check_capacity()
        wanted = parse_chat_request(await _read_body(request, settings))
        return await answer(request, wanted, lambda chat, name: ChatCompletion(service.name, wanted, chat, name))

    @app.post("/v1/responses", openapi_extra=described(ResponsesRequest))
    async def responses(request: Request) -> Response:
        """The same in the words of OpenAI's newer API. Nothing is stored."""
        service.check_capacity()
        wanted = parse_responses_request(await _read_body(request, settings))
        try:
            return await answer(
                request, wanted.as_chat(), lambda chat, name: ResponseAnswer(service.name, wanted, chat, name)
            )
        except MiniGPT4Error as error:
            error.param = wanted.name_of(error.param)
            raise

    _add_probes(app, service)
    app.add_middleware(RequestLogMiddleware, meter=meter, behind_proxy=behind_proxy)
    return app


def _add_probes(app: FastAPI, service: ChatService) -> None:
    """How the server is, for those who keep it running."""

    @app.get("/health")
    async def health() -> Response:
        """Is the engine alive? 503 if not: then the replica is about to be replaced."""
        await service.check_health()
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Loaded, warmed up and alive: a replica that routes requests is all three."""
        await service.check_health()
        return JSONResponse({"status": "ready", "model": service.name})

    @app.get("/status")
    async def status() -> Response:
        """What each engine last said of itself; `minigpt4 serve --status` draws it."""
        return JSONResponse({"model": service.name, "engines": service.replicas()})


class ResponseFormatter(Protocol):
    """An answer in the words of one API."""

    async def whole(self, deltas: AsyncIterator[Delta]) -> dict[str, Any]: ...
    def events(self, first: Delta, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]: ...


Speak = Callable[[PreparedChat, str], ResponseFormatter]


def _check_model(name: str | None, service: ChatService) -> None:
    if name is not None and name != service.name:
        raise ModelNotFound(f"There is no model of that name here; this server serves '{service.name}'.", param="model")


async def _unless_left(request: Request, answering: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The answer; given up if the client leaves. (For streams the framework itself listens.)

    Raises:
        ClientDisconnect: it left.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.create_task(answering), asyncio.create_task(leave())
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        left.cancel()
        answer.cancel()


async def _read_body(request: Request, settings: ServeSettings) -> bytearray:
    """The body, counted while it is read: a declared length may lie, or be missing."""
    limit = settings.max_body_bytes
    too_large = PayloadTooLarge(f"The request is larger than {limit / 2**20:.0f} MiB. Send fewer or smaller pictures.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise DeadlineExceeded(f"The request's body did not arrive within {settings.body_timeout_s:g} s.") from None
    return body
