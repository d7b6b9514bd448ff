"""The asynchronous client for callers without an event loop."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import SecretStr

from minigpt4_serve.client.chat_client import ChatClient
from minigpt4_serve.client.events import Event
from minigpt4_serve.client.models import ModelCard

__all__ = ["SyncChatClient", "iterate", "wait_for"]

_T = TypeVar("_T")


class SyncChatClient:
    """``ChatClient`` for one thread without an event loop; takes the same arguments.

    Raises:
        InvalidRequest: ``base_url`` isn't an address.
    """

    def __init__(self, base_url: str, api_key: SecretStr | None = None, **settings: Any) -> None:
        self._client = ChatClient(base_url, api_key, **settings)
        self._loop = asyncio.new_event_loop()

    @property
    def base_url(self) -> str:
        """The server's address, with its path."""
        return self._client.base_url

    def card(self, *, fresh: bool = False) -> ModelCard:
        """As ``ChatClient.card``."""
        return self._loop.run_until_complete(self._client.card(fresh=fresh))

    def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Generator[Event]:
        """As ``ChatClient.answer``. Closing the iterator, and Ctrl-C while it waits, abort the request."""
        return iterate(self._loop, self._client.answer(messages, **options))

    def close(self) -> None:
        """Close all connections."""
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


def iterate(loop: asyncio.AbstractEventLoop, items: AsyncGenerator[_T]) -> Generator[_T]:
    """The items of an asynchronous generator, which ``loop`` runs and closes.

    An exception that a signal handler raises, such as KeyboardInterrupt, leaves the loop but not its task: the task is
    canceled, so that the generator always ends before the iteration does.
    """
    end: Any = object()

    async def advance() -> _T:
        return await anext(items, end)

    task: asyncio.Task[_T] | None = None
    try:
        while True:
            task = loop.create_task(advance())
            item = loop.run_until_complete(task)
            if item is end:
                return
            yield item
    finally:
        if task is not None and not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.wait({task}))
        loop.run_until_complete(items.aclose())


def wait_for(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """The result of a coroutine; in a thread of its own if an event loop runs in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, lambda: asyncio.run(work())).result()
