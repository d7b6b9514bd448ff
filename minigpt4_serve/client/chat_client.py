"""A chat with an OpenAI-compatible vision server: what its model can do, and one answer as a stream of events.

Any server with OpenAI's chat completions works. Extensions of minigpt4-serve (limits and defaults on the model's card,
queue positions, timings, dropped messages) are used if the server has them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import openai
from pydantic import SecretStr

from minigpt4_serve.client.address import server_address
from minigpt4_serve.client.connection import check_key, make_http_client
from minigpt4_serve.client.events import Event, Retrying
from minigpt4_serve.client.failures import to_minigpt4_error
from minigpt4_serve.client.models import ModelCard, fetch_card
from minigpt4_serve.client.retries import RetryBudget
from minigpt4_serve.client.stream import read_response
from minigpt4_serve.errors import MiniGPT4Error, ModelNotFound, ServerUnreachable, StreamInterrupted

__all__ = ["ChatClient"]

_CARD_LIFETIME_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_STANDARD = frozenset({"max_tokens", "seed", "stop", "stream_options", "temperature", "top_p"})
"""Options that are passed as parameters of the OpenAI client, all others in ``extra_body``."""
_FAILED = (openai.OpenAIError, ValueError)
"""Exceptions of a request; ValueError: the response isn't JSON."""


class ChatClient:
    """A client of one server. Closing an ``answer`` generator aborts the request at the server at once.

    Args:
        base_url: with or without ``/v1`` at its end.
        api_key: None for a server without keys.
        model: None for the only model that the server lists.
        timeout_s: longest silence of the server, in seconds.
        patience_s: all waits for a busy server within one answer, in seconds; see ``RetryBudget``.
        optional: options that are left out from then on if the server refuses them by name.
        keep_connections: connections are shared by requests and belong to one event loop. False opens one for each
            answer: the client then works in any thread and event loop, and needs no ``aclose``.
        clock: seconds, for the age of the model's card.

    Raises:
        InvalidRequest: ``base_url`` isn't an address, or the key or a variable of the environment can't be used; see
            ``make_http_client``. Without ``keep_connections`` each answer raises the last.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 120.0,
        patience_s: float = 30.0,
        optional: Collection[str] = (),
        keep_connections: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = server_address(base_url)
        self._api_key = (check_key(api_key).get_secret_value() if api_key else "") or "none"
        self._named_model = model
        self._timeout = openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
        self._patience_s = patience_s
        self._optional = frozenset({"stream_options", *optional})
        self._refused: frozenset[str] = frozenset()
        self._clock = clock
        self._card: ModelCard | None = None
        self._card_until = 0.0
        self._shared = self._connect() if keep_connections else None

    @property
    def model(self) -> str | None:
        """The name of the model that is asked; None until it is known."""
        return self._named_model or (self._card.name if self._card else None)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._shared is not None:
            await self._shared.close()

    async def card(self, *, fresh: bool = False) -> ModelCard:
        """The model's card, at most a minute old; ``fresh`` always fetches it.

        If that fails, an older card or one with nothing but the given name is returned, unless ``fresh``.

        Raises:
            ModelNotFound: the model isn't listed, or none was named and the server lists several.
            MiniGPT4Error: the request failed.
        """
        if self._card is not None and not fresh and self._clock() < self._card_until:
            return self._card
        try:
            async with self._connection() as client:
                return await self._fetch_card(client)
        except _FAILED as error:
            known = self._card or (ModelCard(self._named_model) if self._named_model else None)
            if known is not None and not fresh:
                return known
            raise to_minigpt4_error(error) from error

    async def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> AsyncGenerator[Event, None]:
        """Events of one answer; the last one is ``Completed``.

        Args:
            messages: the chat in OpenAI's shape.
            options: fields of the request, such as ``temperature``.

        Raises:
            Overloaded: the server is still busy after ``patience_s``.
            ServerUnreachable: it can't be reached; ``StreamInterrupted``: the connection broke in the answer.
            MiniGPT4Error: any other failure.
        """
        budget = RetryBudget(self._patience_s)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._connection())
            while True:
                try:
                    response = await self._open(client, stack, messages, options)
                    async with aclosing(read_response(response)) as events:
                        async for event in events:
                            yield event
                    return
                except ServerUnreachable as error:  # the connection broke
                    delay_s = None if isinstance(error, StreamInterrupted) else budget.next_delay(error)
                    if delay_s is None:
                        raise
                except _FAILED as error:
                    delay_s = budget.next_delay(error) if isinstance(error, openai.OpenAIError) else None
                    if delay_s is None:
                        raise self._failed(error) from error
                yield Retrying(delay_s)
                await asyncio.sleep(delay_s)

    async def _open(
        self,
        client: openai.AsyncOpenAI,
        stack: AsyncExitStack,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> Any:
        """A response whose body hasn't been read; ``stack`` closes it."""
        model = await self._model_name(client)
        while True:
            sent = {"stream_options": {"include_usage": True}, **options}
            sent = {name: value for name, value in sent.items() if name not in self._refused}
            request: dict[str, Any] = {name: value for name, value in sent.items() if name in _STANDARD}
            extra = {name: value for name, value in sent.items() if name not in _STANDARD}
            request |= {"model": model, "messages": list(messages), "stream": True, "extra_body": extra or None}
            try:
                opening = client.chat.completions.with_streaming_response.create(**request)
                return await stack.enter_async_context(opening)
            except openai.APIStatusError as error:
                refused = {name for name in self._optional & sent.keys() if name in error.response.text}
                if error.status_code not in (400, 422) or not refused:
                    raise
                self._refused |= refused

    async def _model_name(self, client: openai.AsyncOpenAI) -> str:
        if self._named_model is not None:
            return self._named_model
        if self._card is not None and self._clock() < self._card_until:
            return self._card.name
        try:
            return (await self._fetch_card(client)).name
        except _FAILED:
            if self._card is None:
                raise
            return self._card.name

    async def _fetch_card(self, client: openai.AsyncOpenAI) -> ModelCard:
        self._card = await fetch_card(client, self._named_model)
        self._card_until = self._clock() + _CARD_LIFETIME_S
        return self._card

    def _failed(self, error: Exception) -> MiniGPT4Error:
        ours = to_minigpt4_error(error)
        if isinstance(ours, ModelNotFound):
            self._card = None  # the server may have been restarted with another model
        return ours

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[openai.AsyncOpenAI]:
        if self._shared is not None:
            yield self._shared
            return
        async with self._connect() as client:
            yield client

    def _connect(self) -> openai.AsyncOpenAI:
        http_client = make_http_client(openai.DefaultAsyncHttpxClient, self.base_url, timeout=self._timeout)
        # No retries in the OpenAI client: it sleeps without reporting it.
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key,
            timeout=self._timeout,
            max_retries=0,
            http_client=http_client,
        )
