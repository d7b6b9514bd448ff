"""ASGI middleware that bounds the bytes of request bodies in this process, of all requests and of each key's."""

from collections import Counter
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4_serve.errors import Overloaded
from minigpt4_serve.server.http.auth import read_key_id

__all__ = ["BodyBudget", "LimitBodies", "count_as_body", "release_body"]

_FREE = 64 * 2**10  # bytes of each body that aren't counted: questions without images are always received
_RETRY_AFTER_S = 2.0
_SCOPE_KEY = "minigpt4.body"


class BodyBudget:
    """Bytes of bodies that are being received and checked.

    Args:
        total: of all requests; those of one key may have half of it.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._by_key: Counter[str] = Counter()

    @property
    def used(self) -> int:
        """Bytes that are counted now."""
        return self._used

    def take(self, key_id: str, size: int) -> None:
        """Count bytes. Raises ``Overloaded`` if there are too many, and counts none."""
        if self._by_key[key_id] + size > self._total // 2 or self._used + size > self._total:
            raise Overloaded(
                "Too many large requests are on their way to this server at the same time; try again in a moment.",
                retry_after=_RETRY_AFTER_S,
            )
        self._used += size
        self._by_key[key_id] += size

    def give_back(self, key_id: str, size: int) -> None:
        """Count ``size`` bytes less."""
        self._used -= size
        self._by_key[key_id] -= size
        if not self._by_key[key_id]:
            del self._by_key[key_id]


class _CountedBody:
    def __init__(self, budget: BodyBudget, key_id: str) -> None:
        self._budget = budget
        self._key_id = key_id
        self._received = 0
        self._taken = 0

    def add(self, size: int) -> None:
        self._received += size
        due = max(0, self._received - _FREE) - self._taken
        if due > 0:
            self._budget.take(self._key_id, due)
            self._taken += due

    def release(self) -> None:
        if self._taken:
            self._budget.give_back(self._key_id, self._taken)
        self._taken = 0


class LimitBodies:
    """Counts bodies against a budget until ``release_body`` or the end of the request.

    It belongs inside of ``RequireKey``, which finds the key. Reading a body raises ``Overloaded`` where the budget is
    used up.
    """

    def __init__(self, app: ASGIApp, *, total: int) -> None:
        self._app = app
        self._budget = BodyBudget(total)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _CountedBody(self._budget, read_key_id(scope))
        scope[_SCOPE_KEY] = body

        async def count() -> MutableMapping[str, Any]:
            message = await receive()
            if size := len(message.get("body", b"")):
                body.add(size)
            return message

        try:
            await self._app(scope, count, send)
        finally:
            body.release()


def count_as_body(scope: Scope, size: int) -> None:
    """Count bytes that the request refers to as if its body held them. Raises ``Overloaded``."""
    body = scope.get(_SCOPE_KEY)
    if body is not None:
        body.add(size)


def release_body(scope: Scope) -> None:
    """Count the request's body no more: it has become a prompt, which the engine's queue bounds."""
    body = scope.get(_SCOPE_KEY)
    if body is not None:
        body.release()
