"""Presents the engine replicas as one ``EngineClient``.

The loss of a replica is handled here: a request of which nothing has been passed on is sent to another replica, up to
three times; a stream that has begun ends with ``EngineFailed``.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error, Overloaded, PayloadTooLarge
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.private_folder import is_full
from minigpt4_serve.server.ray.replica_stats import (
    count_draining_requests,
    count_replicas,
    has_routers,
    read_replica_stats,
)
from minigpt4_serve.settings import EngineSettings

__all__ = ["RayEngineClient"]

_log = logging.getLogger(__name__)

_CALL_ERRORS = (RayError, RayServeException, AioRpcError)
_MAX_ATTEMPTS = 4
_HEALTH_TIMEOUT_S = 5.0
_RETRY_DELAYS_S = (0.5, 2.0, 5.0)  # Ray replaces an engine that fails its health checks within seconds
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
        folder: the server's ``PrivateFolder``, None on a cluster.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        settings: EngineSettings,
        *,
        context_length: int,
        folder: Path | None = None,
    ) -> None:
        self.context_length = context_length
        self._folder = folder
        self._handle = handle
        self._settings = settings
        self._in_progress = 0  # requests of this process that wait for an engine

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

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, request_id: str, whole: bool = False
    ) -> AsyncGenerator[Delta]:
        """See ``EngineClient``; the first image determines the preferred replica."""
        digest = prompt.images[0].digest if prompt.images else ""
        # Replicas send plain dataclasses. Serve's default, cloudpickle, takes ten times as long.
        handle = self._handle.options(stream=True, session_id=digest, response_serialization="pickle")
        begun = False
        self._in_progress += 1
        try:
            for attempt in range(1, _MAX_ATTEMPTS + 1):
                self._check_engines_can_start()
                held: list[Delta] = []  # of a whole answer
                batches = handle.generate.remote(prompt, sampling, request_id)
                try:
                    async for batch in batches:  # type: ignore[union-attr]  # stream=True makes it iterable
                        for delta in batch:
                            if isinstance(delta, MiniGPT4Error):
                                raise delta
                            if whole:
                                held.append(delta)
                            else:
                                begun = begun or delta.queue_position is None
                                with self._not_waiting():
                                    yield delta
                except (MiniGPT4Error, *_CALL_ERRORS, RuntimeError) as error:
                    if begun or attempt == _MAX_ATTEMPTS or not self._can_retry(error, attempt):
                        failure = _to_minigpt4_error(error) or error
                        raise failure from (None if failure is error else error)
                    await _prepare_retry(error, attempt)
                else:
                    break
                finally:
                    # Closes the replica's generator at once; no effect if it has ended.
                    with suppress(Exception):
                        batches.cancel()  # type: ignore[no-untyped-call]
        finally:
            self._in_progress -= 1
        for delta in held:
            yield delta

    @contextmanager
    def _not_waiting(self) -> Iterator[None]:
        """Don't count a request while its client has to read: the engine may be done with it."""
        self._in_progress -= 1
        try:
            yield
        finally:
            self._in_progress += 1

    def _can_retry(self, error: Exception, attempt: int) -> bool:
        """Whether another attempt may succeed."""
        if isinstance(error, Overloaded):
            # Requests of other processes filled that replica. Another one may have capacity; try once more.
            return attempt == 1 and self._free_capacity() >= 0
        if isinstance(error, MiniGPT4Error):
            return isinstance(error, EngineFailed)
        # No replica takes a message that is too large, nor one that Serve's own queue has no room for.
        is_refusal = isinstance(error, BackPressureError) or _MESSAGE_TOO_LARGE in str(error)
        return _to_minigpt4_error(error) is not None and not is_refusal

    def _check_engines_can_start(self) -> None:
        """Raise ``EngineFailed`` if there is no engine, and no room for the files of a new one: it would never come."""
        if self._folder is not None and has_routers() and not count_replicas() and is_full(self._folder):
            _log.error("the temporary folder is full: free space there, so that an engine can start")
            raise EngineFailed("No engine runs, and none can start: the server's temporary folder is full.")


async def _prepare_retry(error: Exception, attempt: int) -> None:
    """Log the retry, and wait where the failed engine's process goes on until Ray replaces it."""
    if not isinstance(error, Overloaded):
        _log.warning("an engine was lost before its answer was complete; the request is sent again")
    if isinstance(error, EngineFailed):
        await asyncio.sleep(_RETRY_DELAYS_S[attempt - 1])


def _to_minigpt4_error(error: Exception) -> MiniGPT4Error | None:
    """The error for a failed call to a replica; None if ``error`` is one, or isn't a failure of Ray, Serve or gRPC."""
    # If a gRPC call fails before it has metadata, Serve raises a RuntimeError with the status in its text.
    if not isinstance(error, _CALL_ERRORS) and not str(error).startswith("Unexpected error (StatusCode."):
        return None
    if _MESSAGE_TOO_LARGE in str(error):
        return PayloadTooLarge(_ANSWER_TOO_LARGE if _ANSWER_REFUSED in str(error) else _REQUEST_TOO_LARGE)
    return EngineFailed(_ENGINE_STOPPED)
