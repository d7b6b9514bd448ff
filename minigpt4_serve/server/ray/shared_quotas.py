"""One ``QuotaStore`` for all replicas, as a small named Ray actor."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from minigpt4_serve import __version__
from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server.keys.key_ring import ApiKey
from minigpt4_serve.server.keys.quotas import HOLDER_TIMEOUT_S, QuotaStatus, QuotaStore

__all__ = ["SharedQuotas"]

_TIMEOUT_S = 15.0
_RETRY_S = 0.2


class SharedQuotas:
    """A replica's access to the shared store, see ``Quotas``. The first replica starts the actor, Ray restarts it.

    No request passes uncounted: while the actor is being restarted, requests with a key wait, and are refused with a
    503 after ``_TIMEOUT_S``.

    Args:
        name: of the actor; other applications on the cluster take another.
    """

    def __init__(self, name: str = "minigpt4") -> None:
        self._holder = uuid.uuid4().hex
        # One more process on the cluster, idle but for a millisecond per request. Other versions use another actor.
        self._store: Any = (
            ray.remote(QuotaStore)
            .options(
                name=f"{name}-quotas-{__version__}",
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
            )
            .remote()
        )
        self._reservations: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def reserve(self, key: ApiKey, reservation: str) -> QuotaStatus:
        """See ``Quotas``."""
        self._reservations.add(reservation)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())
        return await self._result(lambda: self._store.reserve.remote(key.id, key.limits, self._holder, reservation))

    async def consume(self, key: ApiKey, reservation: str, images: int) -> QuotaStatus:
        """See ``Quotas``."""
        return await self._result(
            lambda: self._store.consume.remote(key.id, key.limits, self._holder, reservation, images)
        )

    def release(self, key: ApiKey, reservation: str, *, refund: bool) -> None:
        """See ``Quotas``. The result isn't awaited: the client may have disconnected."""
        self._reservations.discard(reservation)
        self._store.release.remote(key.id, reservation, refund)

    async def _renew(self) -> None:
        """Keep this process's reservations while there are any."""
        while self._reservations:
            with suppress(RayError):
                await self._store.renew.remote(self._holder)
            await asyncio.sleep(HOLDER_TIMEOUT_S / 4)

    async def _result(self, call: Callable[[], Any]) -> QuotaStatus:
        """The result of a call, which is repeated if the actor is lost: its counters are lost with it."""
        last: RayError | None = None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while True:
                    try:
                        status = await call()
                    except RayError as error:
                        last = error
                        await asyncio.sleep(_RETRY_S)
                    else:
                        assert isinstance(status, QuotaStatus)
                        return status
        except TimeoutError as error:
            raise EngineFailed("The counters of the keys are being replaced; try again in a moment.") from last or error
