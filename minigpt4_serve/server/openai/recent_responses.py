"""Recent responses of the Responses API, so that ``previous_response_id`` and ``item_reference`` work.

In the memory of one HTTP process, for a bounded time and size per key. A key never finds another one's.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.openai.responses_response import Response

__all__ = ["KeyResponses", "ResponseHistory"]

_MAX_BYTES = 128 * 2**20  # of all keys
_ENTRY_BYTES = 500  # of a response without its words


@dataclass
class _Entry:
    """A response: the items that its request added to those of ``previous``, and its output."""

    previous: str | None
    items: list[dict[str, Any]]
    size: int
    used: float


@dataclass
class _Owner:
    """The responses of one key, the least recently used first."""

    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    size: int = 0


class ResponseHistory:
    """The responses of all keys. For one event loop.

    Args:
        max_bytes: of the items of each key; 0 keeps nothing.
        max_age_s: a response that hasn't been referred to for so long is dropped.
    """

    def __init__(self, max_bytes: int, max_age_s: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._now = now
        self._owners: OrderedDict[str, _Owner] = OrderedDict()  # the least recently used first

    def of_key(self, key: str) -> "KeyResponses":
        """The responses of one key; an empty string stands for a server without keys."""
        return KeyResponses(self, key)

    def find(self, key: str, response_id: str) -> _Entry | None:
        """A key's response, which counts as used."""
        self._drop_old(key)
        owner = self._owners.get(key)
        entry = owner.entries.get(response_id) if owner is not None else None
        if owner is not None and entry is not None:
            entry.used = self._now()
            owner.entries.move_to_end(response_id)
            self._owners.move_to_end(key)
        return entry

    def find_item(self, key: str, item_id: str) -> dict[str, Any] | None:
        """An item of a key's recent responses."""
        self._drop_old(key)
        owner = self._owners.get(key)
        for entry in reversed(owner.entries.values()) if owner is not None else ():
            for item in entry.items:
                if item.get("id") == item_id:
                    return item
        return None

    def add(self, key: str, response_id: str, previous: str | None, items: list[dict[str, Any]]) -> None:
        """Keep a response, unless its items are larger than ``max_bytes``."""
        size = _ENTRY_BYTES + _size(items)
        if size > self._max_bytes:
            return
        owner = self._owners.setdefault(key, _Owner())
        owner.entries[response_id] = _Entry(previous, items, size, self._now())
        owner.size += size
        self._owners.move_to_end(key)
        if previous is not None:
            self._touch_chain(key, previous)
        self._drop_old(key)
        while owner.size > self._max_bytes:
            self._drop_first(owner)
        while sum(each.size for each in self._owners.values()) > _MAX_BYTES:
            oldest = next(iter(self._owners))
            self._drop_first(self._owners[oldest])
            if not self._owners[oldest].entries:
                del self._owners[oldest]

    def _touch_chain(self, key: str, response_id: str | None) -> None:
        """Count a response and those before it as used, the first of them last: none outlives what it needs."""
        while response_id is not None:
            entry = self.find(key, response_id)
            response_id = None if entry is None else entry.previous

    def _drop_old(self, key: str) -> None:
        owner = self._owners.get(key)
        limit = self._now() - self._max_age_s
        while owner is not None and owner.entries and next(iter(owner.entries.values())).used < limit:
            self._drop_first(owner)

    def _drop_first(self, owner: _Owner) -> None:
        _, entry = owner.entries.popitem(last=False)
        owner.size -= entry.size


class KeyResponses:
    """The recent responses of one key, for one request.

    Attributes:
        bytes_found: of the items that the request refers to.
    """

    def __init__(self, recent: ResponseHistory, key: str) -> None:
        self.bytes_found = 0
        self._recent = recent
        self._key = key

    def items_until(self, response_id: str) -> list[dict[str, Any]]:
        """The conversation up to a response, its output included, the oldest item first.

        Raises:
            InvalidRequest: the response, or one before it, isn't kept.
        """
        parts: list[list[dict[str, Any]]] = []
        current: str | None = response_id
        while current is not None:
            entry = self._recent.find(self._key, current)
            if entry is None:
                raise InvalidRequest(
                    "There is no such response: only recent ones are kept. Send the whole conversation as 'input'.",
                    param="previous_response_id",
                )
            parts.append(entry.items)
            self.bytes_found += entry.size
            current = entry.previous
        return [item for items in reversed(parts) for item in items]

    def item(self, item_id: str, *, param: str) -> dict[str, Any]:
        """An item of a recent response. Raises ``InvalidRequest`` for the field ``param`` if there is none."""
        item = self._recent.find_item(self._key, item_id)
        if item is None:
            raise InvalidRequest(
                "There is no such item: only those of recent responses are kept. Send the item itself.", param=param
            )
        self.bytes_found += _size(item)
        return item

    def keep(self, response: Response, items: Sequence[dict[str, Any]]) -> None:
        """Keep a response to a request with these new items."""
        output = [json.loads(item.to_json()) for item in response.output]
        self._recent.add(self._key, response.id, response.previous_response_id, [*items, *output])


def _size(value: Any) -> int:
    """About the bytes of a JSON value."""
    if isinstance(value, str):
        return len(value) + 50
    if isinstance(value, dict):
        return 100 + sum(_size(key) + _size(each) for key, each in value.items())
    return 50 + sum(map(_size, value)) if isinstance(value, list) else 30
