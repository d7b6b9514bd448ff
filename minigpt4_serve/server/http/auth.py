"""Authentication and quotas as ASGI middleware: every route but probes and files for browsers requires a key.

Without keys the server accepts only requests from this machine to a loopback name. A web page of another site, open in
a browser on this machine, is refused: its requests could use a domain that resolves to 127.0.0.1 (DNS rebinding), or
127.0.0.1 itself, since browsers let any page send requests there whose response it doesn't read.
"""

import uuid
from collections.abc import Collection, MutableMapping, Set
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve.durations import describe_wait
from minigpt4_serve.errors import AuthenticationFailed, MiniGPT4Error, Overloaded, RateLimited
from minigpt4_serve.server.http.error_handlers import error_response
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyRing
from minigpt4_serve.server.keys.quotas import Quotas, QuotaStatus
from minigpt4_serve.settings import is_loopback

__all__ = ["PROBE_PATHS", "QuotaReservation", "RequireKey", "read_key_id"]

PROBE_PATHS = ("/health", "/ready")
"""Answered to everyone, from any machine and by any name."""

_SCOPE_KEY = "minigpt4.quota_reservation"


class QuotaReservation:
    """A request that counts against the quotas of its key.

    Attributes:
        key: the key.
        headers: the response's ``x-ratelimit-*`` headers.
    """

    def __init__(self, key: ApiKey, quotas: Quotas) -> None:
        self.key = key
        self._quotas = quotas
        self._name = uuid.uuid4().hex
        self._keeps_images = False
        self.headers: dict[str, str] = {}

    @staticmethod
    def from_scope(scope: Scope) -> "QuotaReservation | None":
        """The reservation of a request in progress; None on a server without keys."""
        return scope.get(_SCOPE_KEY)

    async def reserve(self) -> None:
        """Count the request. Raises ``RateLimited``."""
        self._apply(await self._quotas.reserve(self.key, self._name))

    async def consume(self, images: int) -> None:
        """Count images, before they are decoded. Raises ``RateLimited``."""
        if images:
            self._apply(await self._quotas.consume(self.key, self._name, images))

    def keep_images(self) -> None:
        """From now on the images count, even if the request fails: an engine may have decoded them."""
        self._keeps_images = True

    def release(self, status: int) -> None:
        """End the request.

        The images of a failed one don't count if none was decoded; a full queue refuses before that. An engine that
        failed may have decoded them: a request that makes it fail isn't free.

        Args:
            status: of the HTTP response; 0 if the client disconnected before it.
        """
        refund = status >= 400 and (not self._keeps_images or status == Overloaded.status)
        self._quotas.release(self.key, self._name, refund=refund)

    def _apply(self, status: QuotaStatus) -> None:
        self.headers = status.headers
        if status.refusal is not None:
            reason, retry_after_s = status.refusal
            raise RateLimited(f"{reason}; try again in {describe_wait(retry_after_s)}.", retry_after=retry_after_s)


def read_key_id(scope: Scope) -> str:
    """The id of the key of a request that counts against quotas; empty on a server without keys."""
    reservation = QuotaReservation.from_scope(scope)
    return "" if reservation is None else reservation.key.id


class RequireKey:
    """Refuses requests without a known key before their body is read; counts POST requests against the key's quotas.

    Args:
        keys: None for a server that accepts requests from this machine without a key.
        quotas: where requests are counted.
        open_paths: may be read without a key, if the server has keys.
        origins: web pages whose requests are accepted without keys, as those of this machine's pages are.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        quotas: Quotas,
        *,
        open_paths: Set[str] = frozenset(),
        origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._keys = keys
        self._quotas = quotas
        self._open_paths = open_paths
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in PROBE_PATHS):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif self._keys is None:
            if _is_local(scope, self._origins):
                await self._app(scope, receive, send)
            else:
                await _refuse(_ONLY_LOCAL, scope, receive, send)
        elif scope["path"] in self._open_paths and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        else:
            key = _find_key(self._keys, scope)
            if key is None:
                await _refuse(_NO_KEY, scope, receive, send)
            elif scope["method"] == "POST":  # only POST requests count against quotas
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


_NO_KEY = AuthenticationFailed(
    "This server requires a valid API key: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'."
)
_ONLY_LOCAL = AuthenticationFailed(
    "This server has no API keys, so it accepts only requests from its own machine to localhost, and none from web "
    "pages of other sites. Its operator can create a key with 'minigpt4 keys add'."
)


def _find_key(keys: KeyRing, scope: Scope) -> ApiKey | None:
    """The key that the request sends as a bearer token or in ``x-api-key``; of both, the first that is known."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = (token if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
    found = (keys.find(key.strip()) for key in given if key.strip())
    return next((key for key in found if key is not None), None)


async def _refuse(error: AuthenticationFailed, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(error)
    response.headers["www-authenticate"] = "Bearer"
    await response(scope, receive, send)


def _is_local(scope: Scope, origins: Collection[str]) -> bool:
    """Whether the request is from this machine to a loopback name, and not from another host's page but ``origins``."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    origin = headers.get("origin", "")  # sent by browsers only; "null" (a file, a sandboxed frame) isn't local
    from_local_page = not origin or origin in origins or is_loopback(_host_part(origin.partition("://")[2]))
    to_loopback = is_loopback(_host_part(headers.get("host", "")))
    return to_loopback and from_local_page and (not client or is_loopback(client[0]))


def _host_part(address: str) -> str:
    """The host of ``host``, ``host:port``, ``[host]`` or ``[host]:port``."""
    return address[1:].partition("]")[0] if address.startswith("[") else address.partition(":")[0]
