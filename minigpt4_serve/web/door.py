"""What stands between the page and the network: the password, and headers that keep everything else out.

Plain ASGI. The headers allow the browser to talk to this page only: no script, picture, font, frame or connection from
elsewhere, whatever an answer holds. Gradio's own routes for files are closed: nothing is ever written.
"""

import asyncio
import math
import secrets
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Door"]

_COOKIE = "minigpt4_page"
_GRADIO = "/gradio_api/"
_OPEN = tuple(f"{_GRADIO}{route}" for route in ("app_id", "cancel", "heartbeat/", "queue/", "run/predict"))
"""What the page's own script needs of Gradio; uploads, files and everything else stay closed."""
_MAX_FORM_BYTES = 4096
_PAUSE_S = 1.0
"""After a wrong password nothing else is compared for that long, whoever sends it: nobody tries many."""

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio needs both; what others wrote never reaches a place where they matter.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        # The frame around a generated page holds it as text; it can't be led anywhere else.
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Door:
    """Middleware around the page.

    Args:
        password: without one everybody who can reach the page may come in.
    """

    def __init__(self, app: ASGIApp, password: SecretStr | None) -> None:
        self._app = app
        self._password = password.get_secret_value().encode() if password else None
        self._ticket = secrets.token_urlsafe(32)
        self._guessing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message)
            await send(message)

        answer = await self._answer(scope, receive)
        await (answer or self._app)(scope, receive, send_guarded)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """What the door itself says; None lets the request in."""
        path = scope["path"]
        if path.startswith(_GRADIO) and not path.startswith(_OPEN):
            return PlainTextResponse("There is nothing at this address.", 404)
        if self._password is None or self._has_ticket(scope):
            return None
        if path == "/enter" and scope["method"] == "POST":
            return await self._enter(Request(scope, receive))
        if path == "/" and scope["method"] == "GET":
            return HTMLResponse(_form(""), 401, headers={"cache-control": "no-store"})
        return PlainTextResponse("The password is missing.", 401)

    async def _enter(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM_BYTES:
                return PlainTextResponse("That is no password.", 413)
        given = parse_qs(body.decode(errors="replace")).get("password", [""])[0]
        assert self._password is not None
        headers = {"cache-control": "no-store"}
        if self._guessing.locked():
            # Not even looked at: a right one would be found out at full speed among guesses that nobody waits for.
            wait = {"retry-after": str(math.ceil(_PAUSE_S))}
            return HTMLResponse(_form("Another password was just tried. Try again in a moment."), 429, headers | wait)
        async with self._guessing:
            if secrets.compare_digest(given.encode(), self._password):
                entered = RedirectResponse(".", 303)
                secure = request.url.scheme == "https"
                entered.set_cookie(_COOKIE, self._ticket, httponly=True, samesite="strict", secure=secure)
                return entered
            await asyncio.sleep(_PAUSE_S)
        return HTMLResponse(_form("That is not the password."), 401, headers=headers)

    def _has_ticket(self, scope: Scope) -> bool:
        try:
            cookie = SimpleCookie(Headers(scope=scope).get("cookie", "")).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self._ticket.encode())


def _add_headers(message: MutableMapping[str, Any]) -> None:
    headers = message.setdefault("headers", [])
    headers += [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


def _form(problem: str) -> str:
    return _FORM.replace("<!-- problem -->", f'<p role="alert">{problem}</p>' if problem else "")


_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Talk to a picture</title>
<style>
  :root { color-scheme: light dark; }
  body { margin: 0; min-height: 100dvh; display: grid; place-items: center; font: 16px/1.5 system-ui, sans-serif;
         background: light-dark(#faf9f7, #17181a); color: light-dark(#1f2023, #ececea); }
  form { width: min(20rem, calc(100vw - 3rem)); display: grid; gap: .75rem; }
  h1 { font-size: 1.25rem; font-weight: 600; margin: 0 0 .5rem; }
  input, button { font: inherit; padding: .65rem .8rem; border-radius: .6rem; }
  input { border: 1px solid light-dark(#8d8a84, #6f7277); background: light-dark(#fff, #222326); color: inherit; }
  button { border: 0; background: #1f6f63; color: #fff; cursor: pointer; }
  :focus-visible { outline: 2px solid light-dark(#1f6f63, #6cc4b4); outline-offset: 2px; }
  p { margin: 0; color: light-dark(#a3261c, #ff9a8d); }
</style></head>
<body><form method="post" action="enter">
  <h1>Talk to a picture</h1>
  <label for="password">Password</label>
  <input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
  <!-- problem -->
  <button>Come in</button>
</form></body></html>
"""
