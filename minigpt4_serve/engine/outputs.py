"""Delivery of outputs from the engine thread into event loops. Imports no torch.

The engine thread adds outputs during a step and flushes them at its end: one call into each event loop per step,
however many tokens the step generated.
"""

import asyncio
import contextlib
from collections import defaultdict

from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.protocol import Delta

__all__ = ["Output", "OutputDispatcher", "OutputStream"]

_MAX_HOLD_S = 0.05  # longest time that decoded text is held back; imperceptible to readers

Output = Delta | MiniGPT4Error
"""A part of the answer, or the error that ends the request."""


class OutputStream:
    """One request's outputs, consumed in the event loop in which the stream was created."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Output] = asyncio.Queue()

    async def get(self, *, within_s: float | None = None) -> Output | None:
        """The next output; None if none arrives within ``within_s`` seconds."""
        if within_s is None:
            return await self._queue.get()
        try:
            async with asyncio.timeout(within_s):
                return await self._queue.get()
        except TimeoutError:
            return None

    def put(self, output: Output) -> None:
        """Append an output. Called in the stream's event loop only."""
        self._queue.put_nowait(output)


class OutputDispatcher:
    """Collects outputs of a step and hands them to the event loops of their streams. For the engine thread only.

    Args:
        max_deltas_per_s: of all answers together. More answers at a time get fewer, longer deltas, because passing
            small ones on costs more than generating them.
    """

    def __init__(self, max_deltas_per_s: int) -> None:
        self._max_deltas_per_s = max_deltas_per_s
        self._pending: list[tuple[OutputStream, Output]] = []

    def min_interval(self, answers: int) -> float:
        """Seconds between two deltas of one answer while so many are generated."""
        return min(_MAX_HOLD_S, answers / self._max_deltas_per_s)

    def add(self, stream: OutputStream, output: Output) -> None:
        """Queue an output until the next ``flush``."""
        self._pending.append((stream, output))

    def flush(self) -> None:
        """Deliver pending outputs with one call into each event loop."""
        if not self._pending:
            return
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[OutputStream, Output]]] = defaultdict(list)
        for stream, output in self._pending:
            by_loop[stream.loop].append((stream, output))
        self._pending = []
        for loop, outputs in by_loop.items():
            with contextlib.suppress(RuntimeError):  # a closed loop has no consumers
                loop.call_soon_threadsafe(_deliver, outputs)


def _deliver(outputs: list[tuple[OutputStream, Output]]) -> None:
    for stream, output in outputs:
        stream.put(output)
