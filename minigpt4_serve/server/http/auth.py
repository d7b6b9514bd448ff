"""Who may ask, and how often: every route but health wants a key. Knows headers, nothing of models or requests' bodies.

Without keys the server answers this machine only, and only under its own names: a web page from elsewhere, open in a
browser here, must reach it neither through a name of its own that points to 127.0.0.1 (DNS rebinding) nor by asking
127.0.0.1 itself, which browsers allow to every page that doesn't want to read the answer.
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

__all__ = ["Admission", "RequireKey"]

_OPEN_PATHS = ("/health", "/ready")
_SCOPE = "minigpt4.admission"


class Admission:
    """One request of a key, as the ledger knows it. Routes tell it how many pictures they are about to look at."""

    def __init__(self, key: ApiKey, quotas: Quotas) -> None:
        self._key, self._quotas = key, quotas
        self._lease = uuid.uuid4().hex
        self.headers: dict[str, str] = {}

    @staticmethod
    def of(scope: Scope) -> "Admission | None":
        """That of a request in progress; None on a server without keys."""
        return scope.get(_SCOPE)

    async def begin(self) -> None:
        """Count the request in. Raises ``RateLimited``."""
        self._note(await self._quotas.begin(self._key, self._lease))

    async def charge(self, images: int) -> None:
        """Count pictures, before they are decoded. Raises ``RateLimited``."""
        if images:
            self._note(await self._quotas.charge(self._key, self._lease, images))

    def end(self, status: int) -> None:
        """The request is over; the pictures of one that was refused don't count."""
        self._quotas.end(self._key, self._lease, refund=status >= 400)

    def _note(self, standing: QuotaStatus) -> None:
        self.headers = standing.headers
        if standing.refusal is not None:
            why, wait = standing.refusal
            raise RateLimited(f"{why}; try again in {ceil(wait)} s.", retry_after=wait)


class RequireKey:
    """ASGI middleware: what isn't a known key's request goes no further, and reads no body.

    Args:
        keys: None leaves the server open to this machine.
        quotas: where requests are counted.
        open_paths: may be read without a key.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing | None, quotas: Quotas, *, open_paths: Set[str] = frozenset()
    ) -> None:
        self._app, self._keys, self._quotas = app, keys, quotas
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
            key = self._key(self._keys, scope)
            if key is None:
                await _refuse(_NO_KEY, scope, receive, send)
            elif scope["method"] == "POST":  # what makes work is counted
                await self._counted(Admission(key, self._quotas), scope, receive, send)
            else:
                await self._app(scope, receive, send)

    @staticmethod
    def _key(keys: KeyRing, scope: Scope) -> ApiKey | None:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        return keys.find(key.strip()) if scheme.lower() == "bearer" else None

    async def _counted(self, admission: Admission, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0  # the client left: its pictures count

        async def send_counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [(name.encode(), value.encode()) for name, value in admission.headers.items()]
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        try:
            try:
                await admission.begin()
            except MiniGPT4Error as error:
                await error_response(error)(scope, receive, send_counted)
            else:
                scope[_SCOPE] = admission
                await self._app(scope, receive, send_counted)
        except ClientDisconnect:
            raise
        except Exception:
            status = 500
            raise
        finally:
            admission.end(status)


_NO_KEY = AuthenticationFailed("This server wants an API key that it knows: send it as 'Authorization: Bearer KEY'.")
_ONLY_LOCAL = AuthenticationFailed(
    "Without API keys this server answers only its own machine, as localhost, and no web page from elsewhere. Its "
    "operator can make a key: minigpt4 keys add."
)


async def _refuse(error: AuthenticationFailed, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(error)
    response.headers["www-authenticate"] = "Bearer"
    await response(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    """Does the request come from this machine, from no page of another, and does it call us by a name of this one?"""
    headers = Headers(scope=scope)
    client = scope.get("client")
    origin = headers.get("origin", "")  # pages send it, programs don't; "null" is a page without an address
    own_page = not origin or is_loopback(_name(origin.partition("://")[2]))
    return is_loopback(_name(headers.get("host", ""))) and own_page and (not client or is_loopback(client[0]))


def _name(address: str) -> str:
    """``host`` of ``host:port`` or ``[host]:port``."""
    return address[1:].partition("]")[0] if address.startswith("[") else address.partition(":")[0]
