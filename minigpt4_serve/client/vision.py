"""Asks an OpenAI-compatible server about pictures. Knows the OpenAI client, no files or addresses of pictures.

Every question has a connection of its own, closed with the answer: the client works in any event loop and thread, there
is nothing to close, and leaving an answer early stops it at the server.
"""

import asyncio
import contextvars
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

import openai
from openai import AsyncOpenAI
from pydantic import SecretStr

from minigpt4_serve.client.address import find_model_async, server_address, server_key
from minigpt4_serve.client.answers import AnswerCache, Gathering, Progress, VisionAnswer
from minigpt4_serve.client.failures import retry_after, to_minigpt4_error
from minigpt4_serve.errors import InvalidRequest, ModelNotFound
from minigpt4_serve.images import EncodedImage, image_url_part

__all__ = ["DEFAULT_QUESTION", "VisionClient", "wait_for"]

DEFAULT_QUESTION = "Describe this picture in detail."

_MAX_QUESTION_CHARS = 4000
_RETRIED = (429, 500, 502, 503, 504)
# Not of OpenAI's shape: a web page, a list where an object should be.
_UNREADABLE = (ValueError, TypeError, AttributeError)
_T = TypeVar("_T")


class VisionClient:
    """One vision model behind an OpenAI-compatible API.

    Args:
        base_url: usually ends in ``/v1``; ``MINIGPT4_BASE_URL`` or this machine's port 8000 if not given.
        api_key: ``MINIGPT4_API_KEY`` if not given; none at all is fine for a server that wants none.
        model: the only model that the server lists if not given.
        timeout_s: longest silence of the server, in seconds.
        max_wait_s: a busy server is waited for that long in all; then the caller hears when to come back.
        temperature: None leaves it to the server.
        max_tokens: longest answer in tokens; None leaves it to the server.
        max_chars: longest answer in characters; reading stops there.
        cache_size: answers that are remembered.

    Raises:
        InvalidRequest: ``base_url`` isn't an address.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: SecretStr | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 60.0,
        max_wait_s: float = 10.0,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        max_chars: int = 4000,
        cache_size: int = 128,
    ) -> None:
        self.base_url = server_address(base_url)
        self._api_key = server_key(api_key)
        self._model = model
        self._found_model: str | None = None
        self._timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        self._max_chars = max_chars
        options = {"temperature": temperature, "max_tokens": max_tokens, "stream_options": {"include_usage": True}}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._cache = AnswerCache(cache_size)

    async def ask(self, question: str, pictures: Sequence[EncodedImage]) -> VisionAnswer:
        """The answer; see ``stream`` for what can go wrong."""
        async with aclosing(self.stream(question, pictures)) as events:
            async for event in events:
                if isinstance(event, VisionAnswer):
                    return event
        raise AssertionError("a stream ends with its answer or an error")

    async def stream(self, question: str, pictures: Sequence[EncodedImage]) -> AsyncGenerator[Progress | VisionAnswer]:
        """Progress, and at last the whole answer.

        Raises:
            InvalidRequest: an empty or far too long question, no picture, or the server refused.
            MiniGPT4Error: any other failure of the tree in ``errors.py`` that clients can meet.
        """
        question = question.strip()
        if not question:
            raise InvalidRequest("The question is empty. Ask something about the picture.")
        if len(question) > _MAX_QUESTION_CHARS:
            raise InvalidRequest(f"The question has more than {_MAX_QUESTION_CHARS} characters; ask a shorter one.")
        if not pictures:
            raise InvalidRequest("No picture is given. Name at least one.")
        try:
            async with aclosing(self._stream(question, pictures)) as events:
                async for event in events:
                    yield event
        except (openai.OpenAIError, *_UNREADABLE) as error:
            ours = to_minigpt4_error(error)
            if isinstance(ours, ModelNotFound):
                self._found_model = None  # the server may have been restarted with another one
            raise ours from error

    async def _stream(self, question: str, pictures: Sequence[EncodedImage]) -> AsyncGenerator[Progress | VisionAnswer]:
        digests = tuple(picture.digest for picture in pictures)
        patience = _Patience(self._max_wait_s)
        async with self._connection() as client:
            while True:
                try:
                    model = self._model or await self._only_model(client)
                    key = digests, question, model
                    if known := self._cache.get(key):
                        yield known
                        return
                    opened = await self._open(client, model, question, pictures)
                    break
                except openai.OpenAIError as error:
                    delay = patience.delay(error)
                    if delay is None:
                        raise
                    yield Progress(wait_s=delay)
                    await asyncio.sleep(delay)
            if (ahead := _number(opened.headers.get("x-minigpt4-queue-position"))) is not None:
                yield Progress(ahead=int(ahead), wait_s=_number(opened.headers.get("x-minigpt4-expected-wait")))
            gathering = Gathering()
            async with aclosing(_pieces(opened)) as pieces:
                async for piece in pieces:
                    if words := gathering.take(piece):
                        yield Progress(text=words)
                    # Boxes' notation and invisible characters leave the text later: read more than is kept.
                    if len(gathering.text) > 2 * self._max_chars:
                        break
        answer = gathering.answer(model, digests, max_chars=self._max_chars)
        self._cache.put(key, answer)
        yield answer

    def _connection(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key.get_secret_value(),
            timeout=self._timeout_s,
            max_retries=0,  # ours: a total limit, and nobody waits without being told why
        )

    async def _only_model(self, client: AsyncOpenAI) -> str:
        if self._found_model is None:
            self._found_model = await find_model_async(client)
        return self._found_model

    async def _open(self, client: AsyncOpenAI, model: str, question: str, pictures: Sequence[EncodedImage]) -> Any:
        parts = [await asyncio.to_thread(image_url_part, picture.data) for picture in pictures]
        messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        while True:
            request: dict[str, Any] = {"model": model, "messages": messages, "stream": True, **self._options}
            try:
                return await client.chat.completions.with_raw_response.create(**request)
            except openai.APIStatusError as error:
                # Servers differ in what they know beyond the words; what one names in its refusal is left out.
                refused = [name for name in self._options if name in error.response.text]
                if error.status_code not in (400, 422) or not refused:
                    raise
                self._options = {name: value for name, value in self._options.items() if name not in refused}


async def _pieces(opened: Any) -> AsyncGenerator[dict[str, Any]]:
    """The pieces of a stream as plain JSON; a server that doesn't stream gives one."""
    if opened.headers.get("content-type", "").startswith("application/json"):
        yield json.loads(await opened.http_response.aread())
        return
    async with opened.parse() as chunks:
        async for chunk in chunks:
            yield chunk.to_dict(warnings=False)


class _Patience:
    """How long a failed try is waited for: as long as the server asks, and never longer than the total."""

    def __init__(self, total_s: float) -> None:
        self._left_s = total_s
        self._tries = 0

    def delay(self, error: openai.OpenAIError) -> float | None:
        """Seconds until the next try, or None to give up."""
        refused = isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
        if not refused and getattr(error, "status_code", None) not in _RETRIED:
            return None
        asked = retry_after(error)
        self._tries += 1
        delay = asked if asked is not None else 0.5 * 2.0 ** (self._tries - 1)
        if delay > self._left_s or self._tries > (8 if asked is not None else 2):
            return None
        delay = max(delay, 0.1)
        self._left_s -= delay
        return delay


def wait_for(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """The result of asynchronous work for callers that aren't; on a thread of its own if a loop already runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, lambda: asyncio.run(work())).result()


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
