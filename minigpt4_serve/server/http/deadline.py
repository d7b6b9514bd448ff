"""Deadlines of requests, in seconds of the event loop's clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from minigpt4_serve.errors import DeadlineExceeded

__all__ = ["before", "deadline_exceeded"]


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """Cancel what isn't done at ``deadline``.

    Raises:
        DeadlineExceeded: it wasn't done.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise deadline_exceeded() from None


def deadline_exceeded() -> DeadlineExceeded:
    """The error of a request that isn't done at its deadline."""
    return DeadlineExceeded(
        "The answer was not complete in time; ask for a shorter one or give a longer 'timeout'.", param="timeout"
    )
