"""One ledger for all replicas: a small named Ray actor. Knows Ray; what is counted and how is ``quotas``' affair."""

import asyncio
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from minigpt4_serve import __version__
from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server.keys.key_ring import ApiKey
from minigpt4_serve.server.keys.quotas import HOLDER_TIMEOUT_S, QuotaStatus, QuotaStore

__all__ = ["SharedQuotas"]

_ANSWER_S = 5.0


class SharedQuotas:
    """A replica's way to the ledger that all of them share; the first replica starts it, Ray restarts it.

    Nothing gets past it: while the ledger doesn't answer, requests with a key are refused with a 503.

    Args:
        name: of the actor; other applications on the cluster take another.
    """

    def __init__(self, name: str = "minigpt4") -> None:
        self._holder = uuid.uuid4().hex
        # One more process on the cluster, idle but for a millisecond per request. Its code is of one version.
        self._ledger: Any = (
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
        self._held: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def begin(self, key: ApiKey, lease: str) -> QuotaStatus:
        """See ``Quotas``."""
        self._held.add(lease)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())
        return await self._ask(self._ledger.begin.remote(key.id, key.limits, self._holder, lease))

    async def charge(self, key: ApiKey, lease: str, images: int) -> QuotaStatus:
        """See ``Quotas``."""
        return await self._ask(self._ledger.charge.remote(key.id, key.limits, self._holder, lease, images))

    def end(self, key: ApiKey, lease: str, *, refund: bool) -> None:
        """See ``Quotas``. Nobody waits for it: the client may have left already."""
        self._held.discard(lease)
        self._ledger.end.remote(key.id, lease, refund)

    async def _renew(self) -> None:
        """While requests are in progress here, the ledger hears that we live."""
        while self._held:
            with suppress(RayError):
                await self._ledger.renew.remote(self._holder)
            await asyncio.sleep(HOLDER_TIMEOUT_S / 4)

    async def _ask(self, answer: Any) -> QuotaStatus:
        try:
            async with asyncio.timeout(_ANSWER_S):
                standing = await answer
        except (RayError, TimeoutError) as error:
            raise EngineFailed("The counters of the keys are being replaced; try again in a moment.") from error
        assert isinstance(standing, QuotaStatus)
        return standing
