"""Authentication and quotas as ASGI middleware: every route but the probes needs a key.

Without keys the server answers this machine only, and only under its own names: a web page from elsewhere, open in a
browser here, must reach it neither through a name of its own that points to 127.0.0.1 (DNS rebinding) nor by asking
127.0.0.1 itself, which browsers allow to every page that doesn't read the answer.
"""

import uuid
from collections.abc import MutableMapping, Set
from math import ceil
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve.errors import AuthenticationFailed, MiniGPT4Error, RateLimited
from minigpt4_serve.server.http.error_handlers import error_response
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyRing
from minigpt4_serve.server.keys.quotas import Quotas, QuotaStatus
from minigpt4_serve.settings import is_loopback

__all__ = ["QuotaReservation", "RequireKey"]

_OPEN_PATHS = ("/health", "/ready")
_SCOPE_KEY = "minigpt4.quota_reservation"


class QuotaReservation:
    """One request of a key in the quotas.

    Attributes:
        headers: ``x-ratelimit-*`` of the response.
    """

    def __init__(self, key: ApiKey, quotas: Quotas) -> None:
        self._key = key
        self._quotas = quotas
        self._name = uuid.uuid4().hex
        self.headers: dict[str, str] = {}

    @staticmethod
    def from_scope(scope: Scope) -> "QuotaReservation | None":
        """The reservation of a request in progress; None on a server without keys."""
        return scope.get(_SCOPE_KEY)

    async def reserve(self) -> None:
        """Count the request. Raises ``RateLimited``."""
        self._apply(await self._quotas.reserve(self._key, self._name))

    async def consume(self, images: int) -> None:
        """Count images, before they are decoded. Raises ``RateLimited``."""
        if images:
            self._apply(await self._quotas.consume(self._key, self._name, images))

    def release(self, status: int) -> None:
        """End the request; images of a refused one don't count.

        Args:
            status: of the HTTP response; 0 if the client disconnected before it.
        """
        self._quotas.release(self._key, self._name, refund=status >= 400)

    def _apply(self, status: QuotaStatus) -> None:
        self.headers = status.headers
        if status.refusal is not None:
            reason, retry_after_s = status.refusal
            raise RateLimited(f"{reason}; try again in {ceil(retry_after_s)} s.", retry_after=retry_after_s)


class RequireKey:
    """ASGI middleware that answers requests without a known key itself, before their body is read.

    Args:
        keys: None leaves the server open to this machine.
        quotas: where requests are counted.
        open_paths: may be read without a key.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing | None, quotas: Quotas, *, open_paths: Set[str] = frozenset()
    ) -> None:
        self._app = app
        self._keys = keys
        self._quotas = quotas
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in _OPEN_PATHS):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif self._keys is None:
            if _is_local(scope):
                await self._app(scope, receive, send)
            else:
                await _refuse(_ONLY_LOCAL, scope, receive, send)
        elif scope["path"] in self._open_paths and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        else:
            key = _find_key(self._keys, scope)
            if key is None:
                await _refuse(_NO_KEY, scope, receive, send)
            elif scope["method"] == "POST":  # only these cause work
                await self._with_reservation(QuotaReservation(key, self._quotas), scope, receive, send)
            else:
                await self._app(scope, receive, send)

    async def _with_reservation(
        self, reservation: QuotaReservation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        status = 0

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name.encode(), value.encode()) for name, value in reservation.headers.items()]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            try:
                await reservation.reserve()
            except MiniGPT4Error as error:
                await error_response(error)(scope, receive, send_with_headers)
            else:
                scope[_SCOPE_KEY] = reservation
                await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            raise
        except Exception:
            status = 500
            raise
        finally:
            reservation.release(status)


_NO_KEY = AuthenticationFailed("This server requires a valid API key: send it as 'Authorization: Bearer KEY'.")
_ONLY_LOCAL = AuthenticationFailed(
    "Without API keys this server answers only its own machine, as localhost, and no web page from elsewhere. Its "
    "operator can make a key: minigpt4 keys add."
)


def _find_key(keys: KeyRing, scope: Scope) -> ApiKey | None:
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return keys.find(key.strip()) if scheme.lower() == "bearer" else None


async def _refuse(error: AuthenticationFailed, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(error)
    response.headers["www-authenticate"] = "Bearer"
    await response(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    """Whether the request comes from this machine, from no web page of another, to one of this machine's own names."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    origin = headers.get("origin", "")  # sent by pages, not by programs; "null" is a page without an address
    own_page = not origin or is_loopback(_host_part(origin.partition("://")[2]))
    return is_loopback(_host_part(headers.get("host", ""))) and own_page and (not client or is_loopback(client[0]))


def _host_part(address: str) -> str:
    """``host`` of ``host:port`` or ``[host]:port``."""
    return address[1:].partition("]")[0] if address.startswith("[") else address.partition(":")[0]
