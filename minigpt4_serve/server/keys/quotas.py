"""Who has asked how much: requests of a minute, requests in progress, pictures of a day. Knows no HTTP and no Ray.

One ``QuotaStore`` counts for the whole service: in the process itself, or as one small Ray actor that all replicas ask
(``shared_quotas``). Counting in each replica and dividing would refuse too early or too late, as requests aren't spread
evenly; a database would be one more thing to run. Counters live in memory: who restarts the service starts anew.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits

__all__ = ["HOLDER_TIMEOUT_S", "LocalQuotas", "QuotaStatus", "QuotaStore", "Quotas"]

_MINUTE, _DAY = 60.0, 86400.0
HOLDER_TIMEOUT_S = 20.0
"""A replica that has said nothing for so long is gone; what it held in progress is free again."""


@dataclass(frozen=True)
class QuotaStatus:
    """Where a key stands after a question to the ledger.

    Attributes:
        headers: ``x-ratelimit-*``, as OpenAI spells them.
        refusal: why not, and in how many seconds to try again; None if it may.
    """

    headers: dict[str, str]
    refusal: tuple[str, float] | None = None


class Quotas(Protocol):
    """The ledger as a replica sees it, wherever it is."""

    async def begin(self, key: ApiKey, lease: str) -> QuotaStatus:
        """Count a request in; ``lease`` names it until ``end``."""

    async def charge(self, key: ApiKey, lease: str, images: int) -> QuotaStatus:
        """Count the request's pictures."""

    def end(self, key: ApiKey, lease: str, *, refund: bool) -> None:
        """The request is over; with ``refund``, its pictures were not looked at."""


@dataclass
class _Account:
    """What one key has used."""

    requests: deque[float] = field(default_factory=deque)  # when, of the last minute
    leases: dict[str, tuple[str, int]] = field(default_factory=dict)  # in progress: (who holds it, its pictures)
    day: int = 0
    images: int = 0


class QuotaStore:
    """The counters. Every method is short and never waits, so one thread needs no lock.

    Args:
        clock: seconds since 1970; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._seen: dict[str, float] = {}  # when each holder was heard of

    def renew(self, holder: str) -> None:
        """The holder lives."""
        self._seen[holder] = self._clock()

    def begin(self, key: str, limits: KeyLimits, holder: str, lease: str) -> QuotaStatus:
        """Count a request in, or refuse it and count nothing."""
        now = self._clock()
        self.renew(holder)
        account = self._account(key, now)
        refusal: tuple[str, float] | None = None
        most = limits.requests_per_minute
        if most is not None and len(account.requests) >= most:
            refusal = f"This key may ask {most} times a minute", account.requests[-most] + _MINUTE - now
        elif limits.concurrent_requests is not None and len(account.leases) >= limits.concurrent_requests:
            refusal = f"This key may have {limits.concurrent_requests} requests in progress at a time", 1.0
        else:
            if most is not None:
                account.requests.append(now)
            account.leases[lease] = (holder, 0)
        return QuotaStatus(_headers(account, limits, now), refusal)

    def charge(self, key: str, limits: KeyLimits, holder: str, lease: str, images: int) -> QuotaStatus:
        """Count pictures, or refuse them and count none."""
        now = self._clock()
        account = self._account(key, now)
        most = limits.images_per_day
        if most is not None and account.images + images > most:
            refusal = (
                f"This key may show {most} pictures a day, {max(0, most - account.images)} are left",
                (account.day + 1) * _DAY - now,
            )
            return QuotaStatus(_headers(account, limits, now), refusal)
        account.images += images
        account.leases[lease] = (holder, images)
        return QuotaStatus(_headers(account, limits, now))

    def end(self, key: str, lease: str, refund: bool) -> None:
        """A request is over."""
        account = self._account(key, self._clock())
        _, images = account.leases.pop(lease, ("", 0))
        if refund:
            account.images = max(0, account.images - images)

    def _account(self, key: str, now: float) -> _Account:
        """The key's account, without what time has undone."""
        account = self._accounts.setdefault(key, _Account())
        while account.requests and account.requests[0] <= now - _MINUTE:
            account.requests.popleft()
        if account.day != int(now // _DAY):
            account.day, account.images = int(now // _DAY), 0
        gone = {holder for holder, seen in self._seen.items() if seen < now - HOLDER_TIMEOUT_S}
        if gone:
            for other in self._accounts.values():
                other.leases = {name: lease for name, lease in other.leases.items() if lease[0] not in gone}
            for holder in gone:
                del self._seen[holder]
        return account


class LocalQuotas:
    """A ledger in this very process."""

    def __init__(self, ledger: QuotaStore | None = None) -> None:
        self._ledger = ledger or QuotaStore()

    async def begin(self, key: ApiKey, lease: str) -> QuotaStatus:
        """See ``Quotas``."""
        return self._now().begin(key.id, key.limits, "here", lease)

    async def charge(self, key: ApiKey, lease: str, images: int) -> QuotaStatus:
        """See ``Quotas``."""
        return self._now().charge(key.id, key.limits, "here", lease, images)

    def end(self, key: ApiKey, lease: str, *, refund: bool) -> None:
        """See ``Quotas``."""
        self._now().end(key.id, lease, refund)

    def _now(self) -> QuotaStore:
        self._ledger.renew("here")  # we live as long as the ledger does
        return self._ledger


def _headers(account: _Account, limits: KeyLimits, now: float) -> dict[str, str]:
    """What is limited, what is left, and when all of it is back."""
    until_minute = account.requests[-1] + _MINUTE - now if account.requests else 0.0
    until_day = (account.day + 1) * _DAY - now if account.images else 0.0
    used: list[tuple[str, int | None, int, float | None]] = [
        ("requests", limits.requests_per_minute, len(account.requests), until_minute),
        ("images", limits.images_per_day, account.images, until_day),
        ("concurrent-requests", limits.concurrent_requests, len(account.leases), None),
    ]
    headers: dict[str, str] = {}
    for name, limit, count, reset in used:
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - count))
            if reset is not None:
                headers[f"x-ratelimit-reset-{name}"] = _duration(reset)
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes it: ``6m0s``, ``250ms``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
