"""The HTTP surface as a plain FastAPI factory: chat completions, models, health. Knows HTTP and wire types, no Ray.

Errors before the first piece of an answer keep their real status; later ones arrive as an event of the stream.
"""

import time
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minigpt4_serve import __version__
from minigpt4_serve.errors import ModelNotFound, PayloadTooLarge
from minigpt4_serve.serving.api import ChatCompletionRequest, parse_chat_request
from minigpt4_serve.serving.auth import RequireKey
from minigpt4_serve.serving.chat import ChatService
from minigpt4_serve.serving.completions import ChatCompletion
from minigpt4_serve.serving.refusals import install
from minigpt4_serve.serving.sight import Meter, Sight

__all__ = ["create_app"]


def create_app(service: ChatService, meter: Meter | None = None) -> FastAPI:
    """The application around one chat service; ``meter`` counts what it does."""
    app = FastAPI(title="minigpt4-serve", version=__version__, docs_url="/docs", redoc_url=None)
    started = int(time.time())

    install(app)
    app.add_middleware(RequireKey, api_key=service.settings.api_key)

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
            "capabilities": {"vision": True, "streaming": True},
        }

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
        completion = ChatCompletion(service.name, wanted, chat, engine_id)
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

    paths = {route.path for route in app.routes if isinstance(route, Route)}
    app.add_middleware(Sight, paths=paths, meter=meter)
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
