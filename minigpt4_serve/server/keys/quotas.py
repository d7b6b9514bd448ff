"""Quotas of API keys: requests per minute, requests in progress, images per day (UTC).

One ``QuotaStore`` counts for the whole service: in the process itself, or in a Ray actor that all HTTP replicas share
(``server.ray.shared_quotas``). Dividing the limits among replicas that count on their own would refuse too early or too
late, since requests aren't spread evenly. The counters are lost when the service restarts.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits

__all__ = ["HOLDER_TIMEOUT_S", "LocalQuotas", "QuotaRefusal", "QuotaStatus", "QuotaStore", "Quotas"]

HOLDER_TIMEOUT_S = 20.0
"""A holder (see ``QuotaStore``) that hasn't renewed for this long counts as lost; its reservations are released."""

_MINUTE_S = 60.0
_DAY_S = 86400.0
_LOCAL_HOLDER = "local"


class QuotaRefusal(NamedTuple):
    """Why a request is refused, and after how many seconds it may be repeated."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True)
class QuotaStatus:
    """A key's quotas after a request or its images were counted or refused.

    Attributes:
        headers: ``x-ratelimit-*``, in OpenAI's format.
        refusal: None if the request may proceed.
    """

    headers: dict[str, str]
    refusal: QuotaRefusal | None = None


class Quotas(Protocol):
    """The quotas of all keys, in this process or in another."""

    async def reserve(self, key: ApiKey, reservation: str) -> QuotaStatus:
        """Count a request, or refuse it; ``reservation`` names it until ``release``."""

    async def consume(self, key: ApiKey, reservation: str, images: int) -> QuotaStatus:
        """Count the images of a request, or refuse them."""

    def release(self, key: ApiKey, reservation: str, *, refund: bool) -> None:
        """End a request; with ``refund`` its images don't count."""


@dataclass
class _Reservation:
    """A request in progress; ``images`` were counted on ``day``."""

    holder: str
    images: int = 0
    day: int = 0


@dataclass
class _Account:
    """What one key has used."""

    requests: deque[float] = field(default_factory=deque)  # times within the last minute; empty without a limit
    reservations: dict[str, _Reservation] = field(default_factory=dict)
    day: int = 0
    images: int = 0


class QuotaStore:
    """The counters. No method awaits, so it needs no lock in an event loop.

    A *holder* is a process with requests in progress; it must ``renew`` within ``HOLDER_TIMEOUT_S``.

    Args:
        clock: seconds since 1970; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._renewed: dict[str, float] = {}  # holder → time

    def renew(self, holder: str) -> None:
        """Record that the holder is alive."""
        self._renewed[holder] = self._clock()

    def reserve(self, key_id: str, limits: KeyLimits, holder: str, reservation: str) -> QuotaStatus:
        """Count a request, or refuse it and count nothing. A repeated call for the same reservation has no effect."""
        now = self._clock()
        self.renew(holder)
        account = self._account(key_id, now)
        if reservation in account.reservations:
            return QuotaStatus(_headers(account, limits, now))
        refusal: QuotaRefusal | None = None
        per_minute = limits.requests_per_minute
        concurrent = limits.concurrent_requests
        if per_minute is not None and len(account.requests) >= per_minute:
            wait = account.requests[-per_minute] + _MINUTE_S - now
            refusal = QuotaRefusal(f"This key may send {per_minute} requests per minute", wait)
        elif concurrent is not None and len(account.reservations) >= concurrent:
            refusal = QuotaRefusal(f"This key may have {concurrent} requests in progress at a time", 1.0)
        else:
            if per_minute is not None:
                account.requests.append(now)
            account.reservations[reservation] = _Reservation(holder)
        return QuotaStatus(_headers(account, limits, now), refusal)

    def consume(self, key_id: str, limits: KeyLimits, holder: str, reservation: str, images: int) -> QuotaStatus:
        """Count images, or refuse them and count none. A repeated call for the same reservation has no effect."""
        now = self._clock()
        account = self._account(key_id, now)
        known = account.reservations.get(reservation)
        if known is not None and known.images:
            return QuotaStatus(_headers(account, limits, now))
        per_day = limits.images_per_day
        if per_day is not None and account.images + images > per_day:
            left = max(0, per_day - account.images)
            refusal = QuotaRefusal(
                f"This key may send {per_day} images per day, {left} are left", (account.day + 1) * _DAY_S - now
            )
            return QuotaStatus(_headers(account, limits, now), refusal)
        account.images += images
        account.reservations[reservation] = _Reservation(holder, images, account.day)
        return QuotaStatus(_headers(account, limits, now))

    def release(self, key_id: str, reservation: str, refund: bool) -> None:
        """End a request; with ``refund`` its images don't count. An unknown reservation has no effect."""
        account = self._account(key_id, self._clock())
        ended = account.reservations.pop(reservation, None)
        if ended is not None and refund and ended.day == account.day:
            account.images -= ended.images

    def _account(self, key_id: str, now: float) -> _Account:
        """The key's account, after removing everything that has expired."""
        account = self._accounts.setdefault(key_id, _Account())
        while account.requests and account.requests[0] <= now - _MINUTE_S:
            account.requests.popleft()
        today = int(now // _DAY_S)
        if account.day != today:
            account.day = today
            account.images = 0
        self._release_lost_holders(now)
        return account

    def _release_lost_holders(self, now: float) -> None:
        lost = {holder for holder, renewed in self._renewed.items() if renewed < now - HOLDER_TIMEOUT_S}
        if not lost:
            return
        for account in self._accounts.values():
            kept = {name: held for name, held in account.reservations.items() if held.holder not in lost}
            account.reservations = kept
        for holder in lost:
            del self._renewed[holder]


class LocalQuotas:
    """A ``QuotaStore`` in this process, see ``Quotas``."""

    def __init__(self, store: QuotaStore | None = None) -> None:
        self._store = store or QuotaStore()

    async def reserve(self, key: ApiKey, reservation: str) -> QuotaStatus:
        """See ``Quotas``."""
        return self._renewed_store().reserve(key.id, key.limits, _LOCAL_HOLDER, reservation)

    async def consume(self, key: ApiKey, reservation: str, images: int) -> QuotaStatus:
        """See ``Quotas``."""
        return self._renewed_store().consume(key.id, key.limits, _LOCAL_HOLDER, reservation, images)

    def release(self, key: ApiKey, reservation: str, *, refund: bool) -> None:
        """See ``Quotas``."""
        self._renewed_store().release(key.id, reservation, refund)

    def _renewed_store(self) -> QuotaStore:
        self._store.renew(_LOCAL_HOLDER)  # so that it is never lost: it is the process of the store itself
        return self._store


def _headers(account: _Account, limits: KeyLimits, now: float) -> dict[str, str]:
    """For each limit: the limit, what remains and, unless it is of concurrent requests, the time until it is reset."""
    until_minute = account.requests[-1] + _MINUTE_S - now if account.requests else 0.0
    until_day = (account.day + 1) * _DAY_S - now if account.images else 0.0
    used: list[tuple[str, int | None, int, float | None]] = [
        ("requests", limits.requests_per_minute, len(account.requests), until_minute),
        ("images", limits.images_per_day, account.images, until_day),
        ("concurrent-requests", limits.concurrent_requests, len(account.reservations), None),
    ]
    headers: dict[str, str] = {}
    for name, limit, count, reset_s in used:
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - count))
            if reset_s is not None:
                headers[f"x-ratelimit-reset-{name}"] = _format_duration(reset_s)
    return headers


def _format_duration(seconds: float) -> str:
    """A duration in OpenAI's format: ``6m0s``, ``250ms``."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
