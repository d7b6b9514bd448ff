"""Parses the JSON of request bodies; that of large ones in a thread, one after another."""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minigpt4_serve.server.openai.chat_request import read_json_object

__all__ = ["read_json_body"]

_LARGE = 256 * 2**10
"""Bytes that take the parser about a millisecond."""


async def read_json_body(body: bytes | bytearray, content: str) -> dict[str, Any]:
    """As ``read_json_object``, without delaying other requests by the time that a large body takes.

    The parser holds the GIL, for 0.1 s at 50 MB. There is a single thread, so that other requests proceed between two
    bodies, however many have arrived.
    """
    if len(body) < _LARGE:
        return read_json_object(body, content)
    return await asyncio.get_running_loop().run_in_executor(_executor(), read_json_object, body, content)


@functools.cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="minigpt4-json")
