"""An engine in other processes, as the HTTP side sees it. Knows Ray's handles; nothing of HTTP, loads no model.

A replica that dies is survived: a request of which nothing was told yet is asked again elsewhere, a stream that had
begun ends in an error of ours.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error, Overloaded, PayloadTooLarge
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.ray.replica_stats import live_replicas, replica_stats, sent_to_leavers
from minigpt4_serve.settings import EngineSettings

__all__ = ["RemoteEngine"]

_log = logging.getLogger(__name__)

_LOST = (RayError, RayServeException, AioRpcError)
_TRIES = 4
_HEALTH_TIMEOUT_S = 5.0
_GONE = "The engine stopped before the answer was complete; ask again in a moment."
# gRPC's own text, with the side that refused the message: the server is sent requests, the client answers.
_MESSAGE_TOO_LARGE = "Received message larger than max"
_ANSWER_REFUSED = f"CLIENT: {_MESSAGE_TOO_LARGE}"
_REQUEST_TOO_LARGE = (
    "The request is larger than this server can pass to its engine. Send fewer or smaller images, or a smaller schema."
)
_ANSWER_TOO_LARGE = "The answer is larger than this server can send. Ask for fewer tokens or log probabilities."


def _is_transport_error(error: Exception) -> bool:
    """Does Serve report the status of a gRPC call, as the text of a ``RuntimeError``?"""
    return str(error).startswith("Unexpected error (StatusCode.")


class RemoteEngine:
    """The engine replicas behind a handle, as if they were one engine in this process.

    Args:
        handle: of a deployment of ``EngineReplica``.
        settings: each replica's.
        context_length: as the replicas tell it.
    """

    def __init__(self, handle: DeploymentHandle[Any], settings: EngineSettings, *, context_length: int) -> None:
        self.context_length = context_length
        self._handle = handle
        self._settings = settings
        self._asked = 0  # requests of this process that aren't answered yet

    async def check_health(self) -> None:
        """Raise ``EngineFailed`` unless some replica answers."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._handle.describe.remote()
        except (TimeoutError, *_LOST) as error:
            raise EngineFailed("No engine is running; it is being replaced. Try again in a moment.") from error

    def check_capacity(self, ahead: int = 0) -> None:
        """Raise ``Overloaded`` if this process alone has filled every place in every engine.

        Of other processes' requests nothing is known here: each engine's own line is the judge.
        """
        if live_replicas() and self._places_left() <= ahead:
            slots, line = self._settings.max_running, self._settings.max_waiting
            took = min((stats["seconds_per_request"] for _, stats in replica_stats()), default=1.0)
            raise Overloaded.queue_full(took * (line + 1) / slots)

    def _places_left(self) -> int:
        """Places in all engines that requests from here don't take; below 0 if there are more requests than places."""
        places = (self._settings.max_running + self._settings.max_waiting) * live_replicas()
        return places - (self._asked - sent_to_leavers())

    def replicas(self) -> list[dict[str, Any]]:
        """What the replicas last said of themselves."""
        return [{"name": name, **stats} for name, stats in replica_stats()]

    async def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncIterator[Delta]:
        """As ``Engine.generate``; the replica is the one that holds the picture, if it can."""
        self._asked += 1
        try:
            async with aclosing(self._generate(prompt, sampling, request_id)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._asked -= 1

    async def _generate(self, prompt: Prompt, sampling: SamplingParams, request_id: str) -> AsyncGenerator[Delta]:
        picture = prompt.images[0].digest if prompt.images else ""
        # What replicas yield are plain data classes: the pickler that also carries code takes ten times as long.
        handle = self._handle.options(stream=True, session_id=picture, response_serialization="pickle")
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
            except Overloaded:
                # Others were on their way there when it was chosen. Some other engine still has a place.
                if attempt > 1 or self._places_left() < 0:
                    raise
            except (*_LOST, RuntimeError) as error:
                if not isinstance(error, _LOST) and not _is_transport_error(error):
                    raise
                if _MESSAGE_TOO_LARGE in str(error):
                    answer = _ANSWER_REFUSED in str(error)
                    raise PayloadTooLarge(_ANSWER_TOO_LARGE if answer else _REQUEST_TOO_LARGE) from error
                if isinstance(error, BackPressureError) or told or attempt == _TRIES:
                    raise EngineFailed(_GONE) from error
                _log.warning("a replica was lost before it answered; the request is asked again")
            else:
                return
            finally:
                # Means nothing if it is done. The replica's generator hears of it at once.
                with suppress(Exception):
                    pieces.cancel()  # type: ignore[no-untyped-call]
