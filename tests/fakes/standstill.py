"""Did this process stand still? On a busy machine everything may, for seconds.

Platforms that count writes by the second see then at once what was written meanwhile: no sign of a bot that writes too
often. (Both bots take a write without a reply for five seconds for one that hangs, and go on.)
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LONG_S = 2.0
_CATCHING_UP_S = 6.0
"""The longest of the short windows, five seconds, is over then."""


class Standstill:
    """Reads the clock repeatedly while ``watched``."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._ended = float("-inf")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        self._looked = time.monotonic()
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(0.1)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > _LONG_S:
            self._ended = now
        self._looked = now

    def just_over(self) -> bool:
        """Whether one ended so recently that what it delayed is still arriving."""
        self._look()
        return time.monotonic() - self._ended < _CATCHING_UP_S
