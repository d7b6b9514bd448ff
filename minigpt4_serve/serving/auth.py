"""Who may ask: one key for the whole server. Knows headers, nothing of models or requests."""

import hashlib
import hmac

from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve.errors import AuthenticationFailed

__all__ = ["RequireKey"]

_OPEN_PATHS = ("/health", "/ready")


class RequireKey:
    """ASGI middleware: every route but health wants ``Authorization: Bearer KEY``, if there is a key at all."""

    def __init__(self, app: ASGIApp, api_key: SecretStr | None) -> None:
        self._app = app
        self._digest = None if api_key is None else _digest(api_key.get_secret_value())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digest is not None and scope["path"] not in _OPEN_PATHS:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            # Digests of equal length, compared in constant time: the answer's timing tells nothing of the key.
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._digest):
                error = AuthenticationFailed("This server wants an API key: send it as 'Authorization: Bearer KEY'.")
                refusal = JSONResponse(error.body(), error.status, headers={"www-authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
