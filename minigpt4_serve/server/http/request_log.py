"""ASGI middleware that logs and counts every request, without its content.

It is the outermost one: it names each request, sees each status line, and answers unexpected errors in OpenAI's shape.
Plain ASGI: with Starlette's ``BaseHTTPMiddleware`` a stream isn't closed when its client disconnects.
"""

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from dataclasses import asdict
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.protocol import Timings, Usage
from minigpt4_serve.server.http.error_handlers import ERROR_HEADER, INTERNAL, error_response
from minigpt4_serve.server.http.request_context import RequestContext, current
from minigpt4_serve.server.logs import REQUEST_LOGGER

__all__ = ["Meter", "RequestLogMiddleware"]

_log = logging.getLogger(REQUEST_LOGGER)


class Meter(Protocol):
    """Counts requests and answers."""

    def answer(self, usage: Usage, timings: Timings) -> None:
        """Count a complete answer."""

    def request(self, path: str, status: int, seconds: float, refusal: str | None) -> None:
        """Count a request; ``refusal`` is the code of its error."""


class RequestLogMiddleware:
    """Adds ``x-request-id`` and ``Server-Timing``, writes a log line, counts.

    Args:
        meter: None counts nothing.
        behind_proxy: Ray's proxy names each request and sets the response's ``x-request-id`` itself.
    """

    def __init__(self, app: ASGIApp, *, meter: Meter | None, behind_proxy: bool = False) -> None:
        self._app = app
        self._meter = meter
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        named = re.fullmatch(r"[\w.:-]{1,128}", given) is not None
        request_id = given if named else f"req-{uuid.uuid4().hex}"
        context = RequestContext()
        status = 0
        refusal: str | None = None

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal status, refusal
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                refusal = next((value.decode() for name, value in headers if name == ERROR_HEADER), None)
                if not (given and self._behind_proxy):
                    headers.append((b"x-request-id", request_id.encode()))
                headers.append((b"server-timing", _server_timing(context).encode()))
            await send(message)

        token = current.set(context)
        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # before the request was complete
        except Exception:
            logging.getLogger(__name__).exception("request %s failed", request_id)
            if not status:
                await error_response(MiniGPT4Error(INTERNAL))(scope, receive, send_with_headers)
        finally:
            current.reset(token)
            self._record(scope, request_id, status, refusal, context)

    def _record(self, scope: Scope, request_id: str, status: int, refusal: str | None, context: RequestContext) -> None:
        seconds = time.monotonic() - context.began
        # The route's own path: a client must not be able to invent labels.
        path: str = getattr(scope.get("route"), "path", "other")
        line: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": path, "status": status}
        line["seconds"] = round(seconds, 4)
        if refusal is not None:
            line["refusal"] = refusal
        if context.usage is not None and context.timings is not None:
            line |= {**asdict(context.usage), "timings": context.timings.as_dict()}
        elif status == 200 and path.startswith("/v1/") and scope["method"] == "POST":
            line["cut_short"] = True  # the client disconnected, or the engine was lost
        quiet = status < 400 and scope["method"] in ("GET", "HEAD")
        _log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": line})
        if self._meter is not None:
            self._meter.request(path, status, seconds, refusal)
            if context.usage is not None and context.timings is not None:
                self._meter.answer(context.usage, context.timings)


def _server_timing(context: RequestContext) -> str:
    """The ``Server-Timing`` header: where the time went; for streams only the time to the first delta."""
    if context.timings is None:
        return f"first;dur={1000 * (time.monotonic() - context.began):.1f}"
    spent = context.timings.as_dict().items()
    return ", ".join(f"{name.removesuffix('_s')};dur={1000 * seconds:.1f}" for name, seconds in spent)
