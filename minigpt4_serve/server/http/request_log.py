"""One line of log and one count for every request, without a word of what it holds. Knows ASGI, no routes.

Outermost in the application: it names each request, sees each status line, and turns what breaks unexpectedly into
OpenAI's shape. Plain ASGI: Starlette's ``BaseHTTPMiddleware`` would stand between a leaving client and its stream.
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

__all__ = ["Meter", "RequestLogMiddleware"]

_log = logging.getLogger("minigpt4_serve.requests")


class Meter(Protocol):
    """Where counts go."""

    def answer(self, usage: Usage, timings: Timings) -> None:
        """An answer has reached its end."""

    def request(self, path: str, status: int, seconds: float, refusal: str | None) -> None:
        """A request has been answered."""


class RequestLogMiddleware:
    """ASGI middleware: ``x-request-id``, ``Server-Timing``, a line of log, counts.

    Args:
        meter: None counts nothing.
        behind_proxy: Ray's proxy, which names each request, also puts the name on the answer; otherwise we do both.
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
        balance = RequestContext()
        status, refusal = 0, None

        async def send_named(message: MutableMapping[str, Any]) -> None:
            nonlocal status, refusal
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                refusal = next((value.decode() for name, value in headers if name == ERROR_HEADER), None)
                if not (given and self._behind_proxy):
                    headers.append((b"x-request-id", request_id.encode()))
                headers.append((b"server-timing", _server_timing(balance).encode()))
            await send(message)

        token = current.set(balance)
        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            pass  # it left before it had asked
        except Exception:
            logging.getLogger(__name__).exception("request %s failed", request_id)
            if not status:
                await error_response(MiniGPT4Error(INTERNAL))(scope, receive, send_named)
        finally:
            current.reset(token)
            self._note(scope, request_id, status, refusal, balance)

    def _note(self, scope: Scope, request_id: str, status: int, refusal: str | None, balance: RequestContext) -> None:
        seconds = time.monotonic() - balance.began
        # The route's own path: strangers must not be able to make up labels.
        path: str = getattr(scope.get("route"), "path", "other")
        line: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": path, "status": status}
        line["seconds"] = round(seconds, 4)
        if refusal is not None:
            line["refusal"] = refusal
        if balance.usage is not None and balance.timings is not None:
            line |= {**asdict(balance.usage), "timings": balance.timings.as_dict()}
        elif status == 200 and path.startswith("/v1/") and scope["method"] == "POST":
            line["cut_short"] = True  # the client left, or the engine was lost
        quiet = status < 400 and scope["method"] == "GET"
        _log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": line})
        if self._meter is not None:
            self._meter.request(path, status, seconds, refusal)
            if balance.usage is not None and balance.timings is not None:
                self._meter.answer(balance.usage, balance.timings)


def _server_timing(balance: RequestContext) -> str:
    """Where the time went, as browsers show it; of a stream only what is known when it begins."""
    if balance.timings is None:
        return f"first;dur={1000 * (time.monotonic() - balance.began):.1f}"
    spent = balance.timings.as_dict().items()
    return ", ".join(f"{name.removesuffix('_s')};dur={1000 * seconds:.1f}" for name, seconds in spent)
