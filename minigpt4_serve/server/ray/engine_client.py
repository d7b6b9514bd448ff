"""Presents the engine replicas as one ``EngineClient``.

The loss of a replica is handled here: a request without output is sent to another replica, up to three times; a stream
that has begun ends with ``EngineFailed``.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error, Overloaded, PayloadTooLarge
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.ray.replica_stats import count_draining_requests, count_replicas, read_replica_stats
from minigpt4_serve.settings import EngineSettings

__all__ = ["RayEngineClient"]

_log = logging.getLogger(__name__)

_CALL_ERRORS = (RayError, RayServeException, AioRpcError)
_MAX_ATTEMPTS = 4
_HEALTH_TIMEOUT_S = 5.0
_ENGINE_STOPPED = "The engine stopped before the answer was complete; ask again in a moment."
# gRPC's text; its prefix is the side that refused the message: CLIENT for an answer, SERVER for a request.
_MESSAGE_TOO_LARGE = "Received message larger than max"
_ANSWER_REFUSED = f"CLIENT: {_MESSAGE_TOO_LARGE}"
_REQUEST_TOO_LARGE = (
    "The request is larger than this server can pass to its engine. Send fewer or smaller images, or a smaller schema."
)
_ANSWER_TOO_LARGE = "The answer is larger than this server can send. Ask for fewer tokens or log probabilities."


class RayEngineClient:
    """The engine replicas behind a handle, see ``EngineClient``.

    Args:
        handle: the handle of an ``EngineReplica`` deployment.
        settings: the engine settings of each replica.
        context_length: the context length of each replica, in tokens.
    """

    def __init__(self, handle: DeploymentHandle[Any], settings: EngineSettings, *, context_length: int) -> None:
        self.context_length = context_length
        self._handle = handle
        self._settings = settings
        self._in_progress = 0  # requests of this process

    async def check_health(self) -> None:
        """See ``EngineClient``."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._handle.describe.remote()
        except (TimeoutError, *_CALL_ERRORS) as error:
            raise EngineFailed(
                "No engine responds; failed engines are being replaced. Try again in a moment."
            ) from error

    async def check_capacity(self, ahead: int = 0) -> None:
        """See ``EngineClient``. Only this process's requests are counted; each engine checks its own queue."""
        if count_replicas() and self._free_capacity() <= ahead:
            max_running = self._settings.max_running
            seconds = min((stats["seconds_per_request"] for _, stats in read_replica_stats()), default=1.0)
            raise Overloaded.queue_full(seconds * (self._settings.max_waiting + 1) / max_running)

    def _free_capacity(self) -> int:
        """Running slots and queue positions of all engines minus this process's requests; may be negative."""
        capacity = (self._settings.max_running + self._settings.max_waiting) * count_replicas()
        return capacity - (self._in_progress - count_draining_requests())

    async def replicas(self) -> list[dict[str, Any]]:
        """See ``EngineClient``: the last report of each replica."""
        return [{"name": name, **stats} for name, stats in read_replica_stats()]

    async def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncGenerator[Delta]:
        """See ``EngineClient``; the first image determines the preferred replica."""
        digest = prompt.images[0].digest if prompt.images else ""
        # Replicas send plain dataclasses. Serve's default, cloudpickle, takes ten times as long.
        handle = self._handle.options(stream=True, session_id=digest, response_serialization="pickle")
        begun = False
        self._in_progress += 1
        try:
            for attempt in range(1, _MAX_ATTEMPTS + 1):
                batches = handle.generate.remote(prompt, sampling, request_id)
                try:
                    async for batch in batches:  # type: ignore[union-attr]  # stream=True makes it iterable
                        for delta in batch:
                            if isinstance(delta, MiniGPT4Error):
                                raise delta
                            begun = begun or delta.queue_position is None
                            yield delta
                except Overloaded:
                    # Requests of other processes filled that replica. Another one may have capacity; try once more.
                    if attempt > 1 or self._free_capacity() < 0:
                        raise
                except (*_CALL_ERRORS, RuntimeError) as error:
                    if (failure := _to_minigpt4_error(error)) is None:
                        raise
                    if begun or attempt == _MAX_ATTEMPTS or not _can_retry(error):
                        raise failure from error
                    _log.warning("a replica was lost before it answered; the request is sent to another one")
                else:
                    return
                finally:
                    # Closes the replica's generator at once; no effect if it has ended.
                    with suppress(Exception):
                        batches.cancel()  # type: ignore[no-untyped-call]
        finally:
            self._in_progress -= 1


def _to_minigpt4_error(error: Exception) -> MiniGPT4Error | None:
    """The error for a failed call to a replica; None if ``error`` isn't a failure of Ray, Serve or gRPC."""
    # If a gRPC call fails before it has metadata, Serve raises a RuntimeError with the status in its text.
    if not isinstance(error, _CALL_ERRORS) and not str(error).startswith("Unexpected error (StatusCode."):
        return None
    if _MESSAGE_TOO_LARGE in str(error):
        return PayloadTooLarge(_ANSWER_TOO_LARGE if _ANSWER_REFUSED in str(error) else _REQUEST_TOO_LARGE)
    return EngineFailed(_ENGINE_STOPPED)


def _can_retry(error: Exception) -> bool:
    """Whether another replica may answer: not if the message is too large, or if Serve's own queue is full."""
    return not isinstance(error, BackPressureError) and _MESSAGE_TOO_LARGE not in str(error)
