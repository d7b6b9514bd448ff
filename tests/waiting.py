"""Waiting in tests for what nothing announces."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], within_s: float = 120) -> None:
    """Look again and again.

    Raises:
        TimeoutError: after ``within_s``.
    """
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
