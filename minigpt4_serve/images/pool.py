"""Runs work on images in threads of its own, never on an event loop and never beside other blocking work.

No process that could be killed is needed: the walk through the container bounds the cost of a check, and the limits on
pixels, scans and memory that of decoding.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from minigpt4_serve.errors import Overloaded

__all__ = ["run_image_work"]

_THREADS = 2  # most of the work holds the GIL
_LARGE = 2 * 2**20
_TIMEOUT_S = 30.0

_T = TypeVar("_T")


async def run_image_work(work: Callable[[], _T], *, size: int = 0, timeout_s: float = _TIMEOUT_S) -> _T:
    """The result of ``work``. If the caller is canceled, work that hasn't begun never begins.

    Args:
        size: of the encoded image, in bytes or characters. Images of more than 2 MiB are worked on one at a time, so
            that many of them delay no others.

    Raises:
        Overloaded: no result within ``timeout_s``, waiting included.
    """
    pool = _large_pool() if size > _LARGE else _pool()
    future = asyncio.wrap_future(pool.submit(work))
    try:
        async with asyncio.timeout(timeout_s):
            return await future
    except TimeoutError:
        if not future.cancelled():
            raise
        raise Overloaded("Too many pictures are being checked; try again in a moment.", retry_after=timeout_s) from None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="minigpt4-images")


@functools.cache
def _large_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="minigpt4-images-large")
