"""Requests that end in time. Knows clocks and iterators, nothing of what is asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from minigpt4_serve.errors import DeadlineExceeded

__all__ = ["before", "until"]

Item = TypeVar("Item")


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """What isn't done before the event loop's clock shows ``deadline`` raises ``DeadlineExceeded``."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded(
            "The answer was not complete in time; ask for a shorter one or give a longer 'timeout'.", param="timeout"
        ) from None


async def until(items: AsyncIterator[Item], deadline: float) -> AsyncIterator[Item]:
    """The same items, each before ``deadline``; closing this iterator closes that one.

    Raises:
        DeadlineExceeded: the next item didn't come in time.
    """
    try:
        while True:
            async with before(deadline):
                item = await anext(items, None)
            if item is None:
                return
            yield item
    finally:
        await items.aclose()  # type: ignore[attr-defined]
