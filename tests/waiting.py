"""Waiting in tests for conditions that no event announces."""

import asyncio
from collections.abc import Callable


async def wait_until(condition: Callable[[], object], within_s: float = 120, *, every_s: float = 0.005) -> None:
    """Check ``condition`` every ``every_s`` seconds until it holds.

    Raises:
        TimeoutError: after ``within_s``.
    """
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(every_s)
