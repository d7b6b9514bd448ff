"""The HTTP surface as a plain FastAPI factory: chat completions, models, health. Knows HTTP and wire types, no Ray.

Errors before the first piece of an answer keep their real status; later ones arrive as an event of the stream.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve import __version__
from minigpt4_serve.engine import Delta
from minigpt4_serve.errors import (
    EngineFailed,
    InvalidRequest,
    MiniGPT4Error,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
)
from minigpt4_serve.serving.api import MAX_BEAMS, ChatCompletionRequest, Message, parse_chat_request
from minigpt4_serve.serving.auth import RequireKey
from minigpt4_serve.serving.chat import ChatService, PreparedChat

__all__ = ["create_app"]

_log = logging.getLogger(__name__)

_INTERNAL = "Something went wrong in the server; its log has the details."


def create_app(service: ChatService) -> FastAPI:
    """The application around one chat service."""
    app = FastAPI(title="minigpt4-serve", version=__version__, docs_url="/docs", redoc_url=None)
    started = int(time.time())
    defaults = service.sampling(ChatCompletionRequest(messages=[Message(role="user")]))

    app.add_exception_handler(MiniGPT4Error, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_middleware(RequireKey, api_key=service.settings.api_key)
    app.add_middleware(_RequestName)

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

    @app.get("/health")
    async def health() -> Response:
        """Is the engine alive? 503 if not: then the replica is about to be replaced."""
        service.engine.check_health()
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Loaded, warmed up and alive: a replica that routes requests is all three."""
        service.engine.check_health()
        return JSONResponse({"status": "ready", "model": service.name})

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model, with what it can do."""
        return JSONResponse({"object": "list", "data": [card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """The model's card."""
        _check_model(name, service)
        return JSONResponse(card())

    @app.post("/v1/chat/completions", openapi_extra=_REQUEST_SCHEMA)
    async def chat_completions(request: Request) -> Response:
        """One answer, whole or streamed as server-sent events."""
        wanted = parse_chat_request(await _read_body(request, service.settings.max_body_bytes))
        _check_model(wanted.model, service)
        chat = await service.prepare(wanted)
        # Not the request's own name: a client may give two requests the same.
        engine_id = uuid.uuid4().hex
        completion = _Completion(service.name, wanted, chat, engine_id)
        deltas = service.stream(chat, request_id=engine_id)
        headers = {"x-minigpt4-dropped-messages": str(chat.dropped_messages)} if chat.dropped_messages else {}
        if not wanted.stream:
            return JSONResponse(await completion.whole(deltas), headers=headers)
        # The first piece is awaited before the status line is sent: a refusal keeps its own status.
        first = await anext(deltas)
        if first.queue_position is not None:
            headers["x-minigpt4-queue-position"] = str(first.queue_position)
            headers["x-minigpt4-expected-wait"] = f"{first.expected_wait_s or 0:.1f}"
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(completion.events(first, deltas), media_type="text/event-stream", headers=headers)

    return app


_REQUEST_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ChatCompletionRequest.model_json_schema()}},
    }
}


def _check_model(name: str | None, service: ChatService) -> None:
    if name is not None and name != service.name:
        raise ModelNotFound(f"There is no model of that name here; this server serves '{service.name}'.", param="model")


async def _read_body(request: Request, limit: int) -> bytes:
    """The body, counted while it is read: a declared length may lie."""
    if int(request.headers.get("content-length") or 0) > limit:
        raise PayloadTooLarge(f"The request is larger than {limit / 2**20:.0f} MiB. Send fewer or smaller pictures.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise PayloadTooLarge(
                f"The request is larger than {limit / 2**20:.0f} MiB. Send fewer or smaller pictures."
            )
    return bytes(body)


class _RequestName:
    """Every request has a name, ``x-request-id``, and what breaks unexpectedly gets OpenAI's shape.

    Who named the request, a proxy such as Ray's in front of us, also puts the name on the answer; otherwise we do both.
    Plain ASGI: Starlette's ``BaseHTTPMiddleware`` would stand between a leaving client and its stream.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        named = re.fullmatch(r"[\w.:-]{1,128}", given) is not None
        request_id = given if named else f"req-{uuid.uuid4().hex}"
        begun = False

        async def send_named(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if not given:
                    message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            _log.exception("request %s failed", request_id)
            if not begun:
                await _error_response(MiniGPT4Error(_INTERNAL))(scope, receive, send_named)


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MiniGPT4Error)
    return _error_response(error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: "There is nothing at this address.", 405: f"{request.method} is not possible at this address."}
    wrapped = InvalidRequest(known.get(error.status_code, "The request can't be answered."))
    wrapped.status = error.status_code
    return _error_response(wrapped)


def _error_response(error: MiniGPT4Error) -> JSONResponse:
    headers = {"retry-after": str(max(1, round(error.retry_after)))} if isinstance(error, Overloaded) else {}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


class _Completion:
    """One answer in OpenAI's words, whole or in chunks."""

    def __init__(self, model: str, wanted: ChatCompletionRequest, chat: PreparedChat, engine_id: str) -> None:
        self._wanted = wanted
        self._dropped = chat.dropped_messages
        self._head = {
            "id": f"chatcmpl-{engine_id}",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, deltas: AsyncIterator[Delta]) -> dict[str, Any]:
        """All choices, as ``chat.completion``."""
        texts = [""] * self._wanted.n
        logprobs: list[list[dict[str, Any]]] = [[] for _ in texts]
        reasons: list[str | None] = [None] * len(texts)
        last: Delta | None = None
        async for delta in deltas:
            texts[delta.index] += delta.text
            logprobs[delta.index] += _logprobs(delta)
            reasons[delta.index] = delta.finish_reason or reasons[delta.index]
            last = delta
        if last is None or "abort" in reasons:
            raise EngineFailed("The answer was cut short; ask again.")
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text.strip(), "refusal": None},
                "logprobs": {"content": logprobs[i], "refusal": None} if self._wanted.logprobs else None,
                "finish_reason": reasons[i],
            }
            for i, text in enumerate(texts)
        ]
        answer = {**self._head, "object": "chat.completion", "choices": choices}
        return {**answer, "usage": self._usage(last), **self._extras(last)}

    async def events(self, first: Delta, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
        """Server-sent events; leaving this generator, however, closes the engine's."""
        begun: set[int] = set()
        last = first
        try:
            delta: Delta | None = first
            while delta is not None:
                last = delta
                if delta.queue_position is not None:
                    # A comment: clients skip it, proxies see that the connection lives.
                    yield f": waiting, {delta.queue_position} ahead\n\n"
                    delta = await anext(deltas, None)
                    continue
                for chunk in self._chunks(delta, begun):
                    yield _event(chunk)
                delta = await anext(deltas, None)
            if self._reports_usage:
                chunk = {**self._head, "object": "chat.completion.chunk", "choices": []}
                yield _event({**chunk, "usage": self._usage(last), **self._extras(last)})
        except MiniGPT4Error as error:
            yield _event(error.body())
        except Exception:
            _log.exception("stream %s failed", self._head["id"])
            yield _event(MiniGPT4Error(_INTERNAL).body())
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]
        yield "data: [DONE]\n\n"

    def _chunks(self, delta: Delta, begun: set[int]) -> list[dict[str, Any]]:
        parts: list[tuple[dict[str, Any], str | None]] = []
        text = delta.text
        if delta.index not in begun:
            # SentencePiece answers begin with a blank that the prompt's last blank already stands for.
            text = text.lstrip()
            if not text and delta.finish_reason is None:
                return []
            begun.add(delta.index)
            parts.append(({"role": "assistant", "content": ""}, None))
        if text:
            parts.append(({"content": text}, None))
        if delta.finish_reason:
            parts.append(({}, delta.finish_reason))
        content = _logprobs(delta)
        # Tokens are reported once: with their text, or with the end if they have none.
        carrier = next((i for i, (piece, _) in enumerate(parts) if piece.get("content")), len(parts) - 1)
        chunks: list[dict[str, Any]] = [
            {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [
                    {
                        "index": delta.index,
                        "delta": piece,
                        "logprobs": {"content": content, "refusal": None} if content and i == carrier else None,
                        "finish_reason": reason,
                    }
                ],
            }
            for i, (piece, reason) in enumerate(parts)
        ]
        if delta.usage is not None and not self._reports_usage:
            # A chunk without choices is only for those who asked for it: others index the first choice blindly.
            chunks[-1].update(self._extras(delta))
        return chunks

    @property
    def _reports_usage(self) -> bool:
        options = self._wanted.stream_options
        return options is not None and options.include_usage

    @staticmethod
    def _usage(last: Delta) -> dict[str, Any]:
        usage = last.usage
        assert usage is not None, "the engine's last delta carries the usage"
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }

    def _extras(self, last: Delta) -> dict[str, Any]:
        """What OpenAI's answers don't have: where the time went, and what was forgotten to fit the context."""
        timings = {"timings": last.timings.as_dict()} if last.timings else {}
        return {**timings, **({"dropped_messages": self._dropped} if self._dropped else {})}


def _logprobs(delta: Delta) -> list[dict[str, Any]]:
    return [
        {
            "token": entry.token,
            "logprob": entry.logprob,
            "bytes": list(entry.token.encode()),
            "top_logprobs": [
                {"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in entry.top
            ],
        }
        for entry in delta.logprobs or ()
    ]


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
