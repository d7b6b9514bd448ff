"""An engine in other processes, as the HTTP side sees it. Knows Ray's handles; nothing of HTTP, loads no model.

A replica that dies is survived: a request of which nothing was told yet is asked again elsewhere, a stream that had
begun ends in an error of ours.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from minigpt4_serve.engine import Delta, Prompt, SamplingParams
from minigpt4_serve.errors import EngineFailed, MiniGPT4Error
from minigpt4_serve.serving.picture_router import replica_stats

__all__ = ["RemoteEngine"]

_log = logging.getLogger(__name__)

_TRIES = 4
_HEALTH_TIMEOUT_S = 5.0
_GONE = "The engine stopped before the answer was complete; ask again in a moment."


class RemoteEngine:
    """The engine replicas behind a handle, as if they were one engine in this process.

    Args:
        handle: of a deployment of ``EngineReplica``.
        context_length: as the replicas tell it.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, context_length: int) -> None:
        self.context_length = context_length
        self._handle = handle

    async def check_health(self) -> None:
        """Raise ``EngineFailed`` unless some replica answers."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._handle.describe.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            raise EngineFailed("No engine is running; it is being replaced. Try again in a moment.") from error

    def replicas(self) -> list[dict[str, Any]]:
        """What the replicas last said of themselves."""
        return [{"name": name, **stats} for name, stats in replica_stats() if stats]

    async def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncIterator[Delta]:
        """As ``Engine.generate``; the replica is the one that holds the picture, if it can."""
        handle = self._handle.options(stream=True, session_id=prompt.pictures[0].digest if prompt.pictures else "")
        told = False
        for attempt in range(1, _TRIES + 1):
            pieces = handle.generate.remote(prompt, sampling, request_id)
            try:
                async for batch in pieces:  # type: ignore[union-attr]  # it streams
                    for delta in batch:
                        if isinstance(delta, MiniGPT4Error):
                            raise delta
                        told = told or delta.queue_position is None
                        yield delta
            except (RayError, RayServeException) as error:
                if isinstance(error, BackPressureError) or told or attempt == _TRIES:
                    raise EngineFailed(_GONE) from error
                _log.warning("a replica was lost before it answered; the request is asked again")
            else:
                return
            finally:
                # Means nothing if it is done. The replica's generator hears of it at once.
                with suppress(Exception):
                    pieces.cancel()  # type: ignore[no-untyped-call]
