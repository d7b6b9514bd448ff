"""HEAD requests as ASGI middleware: every route that answers GET answers them, without a body (RFC 9110, 9.3.2)."""

from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["AnswerHeadRequests"]


class AnswerHeadRequests:
    """Passes HEAD requests on as GET and drops the bodies of their responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: MutableMapping[str, Any]) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # The server reads the method in its own scope to find out whether a body follows.
        passed = {**scope, "method": "GET"}
        try:
            await self._app(passed, receive, send_without_body)
        finally:
            scope["route"] = passed.get("route")  # for the request log
