"""The HTTP application as a FastAPI factory: answers, models, probes.

Errors before the first delta of an answer keep their HTTP status; later ones arrive as an event of the stream.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response, StreamingResponse
from fastapi_offline import FastAPIOffline

from minigpt4_serve import __version__
from minigpt4_serve.errors import DeadlineExceeded, EngineFailed, MiniGPT4Error, ModelNotFound, PayloadTooLarge
from minigpt4_serve.server.http.answers import collect_answer, next_delta, stream_events, unless_disconnected
from minigpt4_serve.server.http.auth import PROBE_PATHS, QuotaReservation, RequireKey, read_key_id
from minigpt4_serve.server.http.body_budget import LimitBodies, count_as_body, release_body
from minigpt4_serve.server.http.chat_service import ChatService, PreparedChat
from minigpt4_serve.server.http.deadline import before
from minigpt4_serve.server.http.error_handlers import add_error_handlers
from minigpt4_serve.server.http.head_requests import AnswerHeadRequests
from minigpt4_serve.server.http.json_bodies import read_json_body
from minigpt4_serve.server.http.metrics_route import ReadMetrics, add_metrics
from minigpt4_serve.server.http.page import add_page
from minigpt4_serve.server.http.request_log import Meter, RequestLogMiddleware
from minigpt4_serve.server.http.static_files import keep_in_memory
from minigpt4_serve.server.keys.key_ring import KeyRing
from minigpt4_serve.server.keys.quotas import LocalQuotas, Quotas
from minigpt4_serve.server.openai.chat_formatter import ChatFormatter
from minigpt4_serve.server.openai.chat_request import MAX_BEAMS, ChatCompletionRequest, Message, parse_chat_request
from minigpt4_serve.server.openai.chat_response import ChatCompletion, ChatCompletionChunk
from minigpt4_serve.server.openai.chat_tool_formatter import ChatToolFormatter
from minigpt4_serve.server.openai.model_card import Capabilities, ModelCard, ModelDefaults, ModelList
from minigpt4_serve.server.openai.openapi import answer_responses, declare_keys, request_body
from minigpt4_serve.server.openai.recent_responses import ResponseHistory
from minigpt4_serve.server.openai.responses_formatter import ResponsesFormatter
from minigpt4_serve.server.openai.responses_request import ResponsesRequest, parse_responses_request
from minigpt4_serve.server.openai.responses_response import Response as ResponsesResponse
from minigpt4_serve.server.openai.responses_response import ResponseEvent
from minigpt4_serve.server.openai.responses_tool_formatter import ResponsesToolFormatter
from minigpt4_serve.server.openai.wire import ErrorResponse, ResponseFormatter, ResponseModel
from minigpt4_serve.settings import ServeSettings

__all__ = ["create_app"]

MakeFormatter = Callable[[PreparedChat, str], ResponseFormatter]
"""(prepared chat, unique id of the answer) → what formats the answer."""

_DOCS_FILES = "/docs/files"
_DOCS_NAMES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
_OPEN_PATHS = frozenset({"/docs", "/openapi.json"} | {f"{_DOCS_FILES}/{name}" for name in _DOCS_NAMES})
"""A browser that opens ``/docs`` sends no key; the files hold no secrets."""

_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": ErrorResponse, "description": "No engine answers."}}
_NO_MODEL: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "There is no such model."}}


class Health(ResponseModel):
    """The server is alive."""

    status: str


class Readiness(ResponseModel):
    """The server answers requests."""

    status: str
    model: str


class ServerStatus(ResponseModel):
    """The model, and the last statistics of each engine: ``EngineStats`` with the engine's ``name``."""

    model: str
    engines: list[dict[str, Any]]


def create_app(
    service: ChatService,
    quotas: Quotas | None = None,
    meter: Meter | None = None,
    *,
    metrics: ReadMetrics | None = None,
    behind_proxy: bool = False,
) -> FastAPI:
    """The application around one chat service.

    Args:
        quotas: where requests of keys are counted; in this process if not given.
        meter: counts requests and answers.
        metrics: gives what ``/metrics`` shows; without it there is no such route.
        behind_proxy: Ray's proxy forwards the requests, see ``RequestLogMiddleware``.

    Raises:
        InvalidRequest: the settings name a keys file that can't be read or holds no key.
    """
    settings = service.settings
    keys = KeyRing(settings.keys_file, settings.api_key) if settings.keys_file or settings.api_key else None
    app = FastAPIOffline(
        title="minigpt4-serve",
        version=__version__,
        docs_url="/docs",
        redoc_url=None,
        static_url=_DOCS_FILES,
        generate_unique_id_function=lambda route: route.name,  # generated clients' names of methods and classes
    )
    keep_in_memory(app, _DOCS_FILES, _DOCS_NAMES)
    add_error_handlers(app)
    app.include_router(_model_routes(service))
    app.include_router(_answer_routes(service))
    app.include_router(_probe_routes(service))
    if metrics is not None:
        add_metrics(app, metrics)
    app.add_middleware(AnswerHeadRequests)
    app.add_middleware(LimitBodies, total=max(settings.max_bodies_bytes, 2 * settings.max_body_bytes))
    open_paths = _OPEN_PATHS | (add_page(app) if settings.page else frozenset())
    app.add_middleware(
        RequireKey,
        keys=keys,
        quotas=quotas or LocalQuotas(),
        open_paths=open_paths,
        origins=settings.cors_origins,
    )
    app.add_middleware(RequestLogMiddleware, meter=meter, behind_proxy=behind_proxy)
    _declare_keys(app, required=keys is not None)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("*",),
        )
    return app


def _declare_keys(app: FastAPI, *, required: bool) -> None:
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()  # the same object each time
        declare_keys(document, required=required, open_paths=PROBE_PATHS)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _model_routes(service: ChatService) -> APIRouter:
    router = APIRouter()
    first = _model_card(service)
    cards = [first.model_copy(update={"id": name}) for name in service.names]

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """The only model, with its capabilities, once by each of its names."""
        return _json(ModelList(object="list", data=cards))

    @router.get("/v1/models/{name:path}", response_model=ModelCard, responses=_NO_MODEL)
    async def model(name: str) -> Response:
        """The model's card."""
        _check_model(name, service)
        return _json(first.model_copy(update={"id": name}))

    return router


def _model_card(service: ChatService) -> ModelCard:
    sampling = service.sampling(ChatCompletionRequest(messages=[Message(role="user")]))
    return ModelCard(
        id=service.name,
        object="model",
        created=int(time.time()),
        owned_by="minigpt4-serve",
        root=service.name,
        context_length=service.context_length,
        max_model_len=service.context_length,
        image_tokens=service.image_tokens,
        max_images=service.settings.max_images_per_request,
        max_image_bytes=service.settings.max_image_bytes,
        capabilities=Capabilities(vision=True, streaming=True, max_beams=MAX_BEAMS, boxes=service.writes_boxes),
        defaults=ModelDefaults(temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens),
    )


def _answer_routes(service: ChatService) -> APIRouter:
    router = APIRouter()
    recent = ResponseHistory(service.settings.response_store_bytes, service.settings.response_store_s)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=answer_responses(ChatCompletion, ChatCompletionChunk),
        openapi_extra=request_body(ChatCompletionRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """One answer, whole or streamed as server-sent events."""
        await service.check_capacity()
        body = await _read_body(request, service.settings)
        chat_request = parse_chat_request(await read_json_body(body, "messages"))
        name = chat_request.model or service.name

        def make_formatter(chat: PreparedChat, answer_id: str) -> ResponseFormatter:
            given = (name, chat_request, answer_id, chat.dropped_messages)
            call = chat_request.forced_call
            return ChatFormatter(*given) if call is None else ChatToolFormatter(*given, call)

        with _rename_param(chat_request.rename_param):
            return await _answer(request, service, chat_request, make_formatter)

    @router.post(
        "/v1/responses",
        response_model=ResponsesResponse,
        responses=answer_responses(ResponsesResponse, ResponseEvent),
        openapi_extra=request_body(ResponsesRequest),
    )
    async def responses(request: Request) -> Response:
        """The same in the shape of OpenAI's newer API. Responses are kept for a while, to be referred to."""
        await service.check_capacity()
        history = recent.of_key(read_key_id(request.scope))
        body = await _read_body(request, service.settings)
        responses_request = parse_responses_request(await read_json_body(body, "input"), history)
        count_as_body(request.scope, history.bytes_found)
        chat_request = responses_request.as_chat()
        name = responses_request.model or service.name

        def make_formatter(chat: PreparedChat, answer_id: str) -> ResponseFormatter:
            def keep(response: ResponsesResponse) -> None:
                history.keep(response, responses_request.new_items)

            given = (
                name,
                responses_request,
                answer_id,
                chat.sampling,
                chat.dropped_messages,
                keep if responses_request.store else None,
            )
            call = chat_request.forced_call
            return ResponsesFormatter(*given) if call is None else ResponsesToolFormatter(*given, call)

        with _rename_param(responses_request.rename_param):
            return await _answer(request, service, chat_request, make_formatter)

    return router


def _probe_routes(service: ChatService) -> APIRouter:
    router = APIRouter()

    @router.get("/health", response_model=Health, responses=_UNAVAILABLE)
    async def health() -> Response:
        """200 while an engine answers; 503 otherwise: then the replica is about to be replaced."""
        await service.check_health()
        return _json(Health(status="ok"))

    @router.get("/ready", response_model=Readiness, responses=_UNAVAILABLE)
    async def ready() -> Response:
        """Loaded, warmed up and alive: a replica that routes requests is all three."""
        await service.check_health()
        return _json(Readiness(status="ready", model=service.name))

    @router.get("/status", response_model=ServerStatus)
    async def status() -> Response:
        """The last statistics of each engine; `minigpt4 serve --status` renders them."""
        return _json(ServerStatus(model=service.name, engines=await service.replicas()))

    return router


async def _answer(
    request: Request, service: ChatService, chat_request: ChatCompletionRequest, make_formatter: MakeFormatter
) -> Response:
    """Pass the request to the engine; the answer whole or as server-sent events, in the shape of one API."""
    _check_model(chat_request.model, service)
    timeout = min(chat_request.timeout or inf, service.settings.max_request_s)
    deadline = asyncio.get_running_loop().time() + timeout
    reservation = QuotaReservation.from_scope(request.scope)
    if reservation is not None:
        await reservation.consume(chat_request.num_images)
    async with before(deadline):
        chat = await service.prepare(chat_request, cache_salt=_cache_salt(reservation, service.settings))
    release_body(request.scope)
    if reservation is not None:
        reservation.keep_images()
    # Not the request's own id: a client may give the same one to two requests.
    answer_id = uuid.uuid4().hex
    formatter = make_formatter(chat, answer_id)
    deltas = service.stream(chat, request_id=answer_id, whole=not chat_request.stream)
    headers = dict(chat_request.notes)
    if chat.dropped_messages:
        headers["x-minigpt4-dropped-messages"] = str(chat.dropped_messages)
    if not chat_request.stream:
        return _json(await unless_disconnected(request, collect_answer(formatter, deltas, deadline)), headers)
    # The first delta is awaited before the status line is sent, so that a refusal keeps its own status.
    first = await next_delta(deltas, deadline)
    if first is None:
        raise EngineFailed("The answer was cut short; ask again.")
    if first.queue_position is not None:
        headers["x-minigpt4-queue-position"] = str(first.queue_position)
        headers["x-minigpt4-expected-wait"] = f"{first.expected_wait_s or 0:.1f}"
    headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
    events = stream_events(formatter, first, deltas, deadline, answer_id)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _cache_salt(reservation: QuotaReservation | None, settings: ServeSettings) -> str:
    """Keys with the same salt share caches: those of a group, or each one with itself."""
    if reservation is None:
        return ""
    for number, group in enumerate(settings.cache_groups):
        if reservation.key.name in group or "*" in group:
            return f"group {number}"
    return f"key {reservation.key.id}"


def _json(body: ResponseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(body.to_json(), media_type="application/json", headers=headers)


@contextmanager
def _rename_param(rename: Callable[[str | None], str | None]) -> Iterator[None]:
    """Errors name the field of the client's request."""
    try:
        yield
    except MiniGPT4Error as error:
        error.param = rename(error.param)
        raise


def _check_model(name: str | None, service: ChatService) -> None:
    if name is not None and not service.serves(name):
        raise ModelNotFound(f"There is no model of that name here; this server serves '{service.name}'.", param="model")


async def _read_body(request: Request, settings: ServeSettings) -> bytearray:
    """The body, counted while it is read: the declared length may be wrong or missing.

    Raises:
        PayloadTooLarge: it has more than ``max_body_bytes``.
        DeadlineExceeded: it isn't complete after ``body_timeout_s``.
    """
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
