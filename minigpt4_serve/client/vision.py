"""Asks an OpenAI-compatible server about pictures. Knows the OpenAI client and typed answers, no files or addresses.

Every question has a connection of its own, closed with the answer: the client works in any event loop and thread, there
is nothing to close, and leaving an answer early stops it at the server.
"""

import asyncio
import base64
import contextvars
import io
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from openai import AsyncOpenAI
from PIL import Image
from pydantic import BaseModel, ConfigDict, SecretStr

from minigpt4_serve.boxes import parse_groundings, plain_text
from minigpt4_serve.client.failures import as_ours, retry_after
from minigpt4_serve.client.words import clean, delimited
from minigpt4_serve.errors import EngineFailed, InvalidRequest, MiniGPT4Error, ModelNotFound
from minigpt4_serve.pictures import Picture

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_QUESTION",
    "FoundBox",
    "Progress",
    "TokenUsage",
    "VisionAnswer",
    "VisionClient",
    "data_url",
    "wait_for",
    "with_path",
]

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
DEFAULT_QUESTION = "Describe this picture in detail."

_MAX_QUESTION_CHARS = 4000
_RETRIED = (429, 500, 502, 503, 504)
_T = TypeVar("_T")


class FoundBox(BaseModel):
    """A thing that the model points at, in percent of the picture's width and height."""

    model_config = ConfigDict(frozen=True)

    phrase: str | None
    left: int
    top: int
    right: int
    bottom: int


class TokenUsage(BaseModel):
    """What the answer cost, in tokens."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class VisionAnswer(BaseModel):
    """An answer about pictures.

    Attributes:
        text: the model's words without control characters and boxes' notation, cut to the client's limit.
        model: who answered.
        digests: the SHA-256 of each picture, in order.
        boxes: where the model said things are, if it speaks MiniGPT-v2's notation.
        usage: None if the server doesn't tell.
        timings: seconds by stage, as minigpt4-serve measures them; None from other servers.
        truncated: there was more than the limit.
        from_cache: the same question about the same pictures was answered before.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    model: str
    digests: tuple[str, ...]
    boxes: tuple[FoundBox, ...] = ()
    usage: TokenUsage | None = None
    timings: dict[str, float] | None = None
    truncated: bool = False
    from_cache: bool = False

    def for_model(self) -> str:
        """The answer as another model may read it: marked as data, with boxes in words."""
        places = [
            f"{box.phrase or 'box'}: {box.left}–{box.right} % from the left, {box.top}–{box.bottom} % from the top"
            for box in self.boxes
        ]
        return delimited("\n".join([self.text, *places]).strip(), truncated=self.truncated)


@dataclass(frozen=True)
class Progress:
    """Something that happened before the answer is whole.

    Attributes:
        text: the next piece of the answer, as the server sent it.
        ahead: requests that wait before this one.
        wait_s: expected or agreed seconds until the next try or the answer's beginning.
    """

    text: str = ""
    ahead: int | None = None
    wait_s: float | None = None


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
        self.base_url = with_path(base_url or os.environ.get("MINIGPT4_BASE_URL") or DEFAULT_BASE_URL)
        self._api_key = api_key or SecretStr(os.environ.get("MINIGPT4_API_KEY") or "none")
        self._model = model
        self._found_model: str | None = None
        self._timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        self._max_chars = max_chars
        options = {"temperature": temperature, "max_tokens": max_tokens}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._cache = _AnswerCache(cache_size)

    async def ask(self, question: str, pictures: Sequence[Picture]) -> VisionAnswer:
        """The answer; see ``stream`` for what can go wrong."""
        async with aclosing(self.stream(question, pictures)) as events:
            async for event in events:
                if isinstance(event, VisionAnswer):
                    return event
        raise AssertionError("a stream ends with its answer or an error")

    async def stream(self, question: str, pictures: Sequence[Picture]) -> AsyncGenerator[Progress | VisionAnswer]:
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
        digests = tuple(picture.digest for picture in pictures)
        patience = _Patience(self._max_wait_s)
        client = AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key.get_secret_value(),
            timeout=self._timeout_s,
            max_retries=0,  # ours: a total limit, and nobody waits without being told why
        )
        async with client:
            while True:
                try:
                    model = self._model or self._found_model or await self._find_model(client)
                    key = digests, question, model
                    if known := self._cache.get(key):
                        yield known
                        return
                    opened = await self._open(client, model, question, pictures)
                    break
                except openai.OpenAIError as error:
                    delay = patience.delay(error)
                    if delay is None:
                        raise self._failed(error) from error
                    yield Progress(wait_s=delay)
                    await asyncio.sleep(delay)
            async with aclosing(self._read(opened, model, digests)) as events:
                async for event in events:
                    if isinstance(event, VisionAnswer):
                        self._cache.put(key, event)
                    yield event

    async def _find_model(self, client: AsyncOpenAI) -> str:
        listed = [model.id async for model in client.models.list()]
        if len(listed) != 1:
            raise ModelNotFound("The vision server offers no model or several; its operator must name the one to use.")
        self._found_model = listed[0]
        return listed[0]

    async def _open(self, client: AsyncOpenAI, model: str, question: str, pictures: Sequence[Picture]) -> Any:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(picture.data)}} for picture in pictures
        ]
        messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        request: dict[str, Any] = {"model": model, "messages": messages, "stream": True, **self._options}
        request["stream_options"] = {"include_usage": True}
        return await client.chat.completions.with_raw_response.create(**request)

    async def _read(self, opened: Any, model: str, digests: tuple[str, ...]) -> AsyncGenerator[Progress | VisionAnswer]:
        if (ahead := _number(opened.headers.get("x-minigpt4-queue-position"))) is not None:
            yield Progress(ahead=int(ahead), wait_s=_number(opened.headers.get("x-minigpt4-expected-wait")))
        text, usage, timings, finished, truncated = "", None, None, False, False
        try:
            async with opened.parse() as chunks:
                async for chunk in chunks:
                    usage = _usage(chunk) or usage
                    timings = _timings(chunk) or timings
                    for choice in chunk.choices or ():
                        finished = finished or choice.finish_reason is not None
                        if piece := choice.delta.content:
                            text += piece
                            yield Progress(text=piece)
                    # Boxes' notation and invisible characters leave the text later: read a little more than is kept.
                    if truncated := len(text) > 2 * self._max_chars:
                        break
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            # The latter three: pieces that aren't of OpenAI's shape.
            raise self._failed(error) from error
        if not (finished or text):
            raise EngineFailed("The vision server sent no answer; try again later.")
        groundings = parse_groundings(text)
        words, cut = clean(plain_text(text) if groundings else text, self._max_chars)
        boxes = tuple(
            FoundBox(phrase=found.phrase, left=box.left, top=box.top, right=box.right, bottom=box.bottom)
            for found in groundings
            for box in found.boxes
        )
        yield VisionAnswer(
            text=words,
            model=model,
            digests=digests,
            boxes=boxes,
            usage=usage,
            timings=timings,
            truncated=truncated or cut,
        )

    def _failed(self, error: Exception) -> MiniGPT4Error:
        ours = as_ours(error)
        if isinstance(ours, ModelNotFound):
            self._found_model = None  # the server may have been restarted with another one
        return ours


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


class _AnswerCache:
    """The latest answers, by pictures, question and model. May be asked from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[tuple[Any, ...], VisionAnswer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> VisionAnswer | None:
        with self._lock:
            if (answer := self._answers.get(key)) is None:
                return None
            self._answers.move_to_end(key)
        return answer.model_copy(update={"from_cache": True})

    def put(self, key: tuple[Any, ...], answer: VisionAnswer) -> None:
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > self._size:
                self._answers.popitem(last=False)


def wait_for(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """The result of asynchronous work for callers that aren't; on a thread of its own if a loop already runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, lambda: asyncio.run(work())).result()


def with_path(base_url: str) -> str:
    """The address as OpenAI's client takes it: with ``/v1`` if it has no path.

    Raises:
        InvalidRequest: not an address.
    """
    base_url = base_url.strip().rstrip("/")
    scheme, separator, rest = base_url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest:
        raise InvalidRequest("The vision server's address should look like http://127.0.0.1:8000/v1.", param="base_url")
    return base_url if "/" in rest else f"{base_url}/v1"


def data_url(data: bytes) -> str:
    """A picture as OpenAI's messages carry it, with the type that its bytes are."""
    with Image.open(io.BytesIO(data)) as image:
        kind = Image.MIME[image.format or "PNG"]
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _usage(chunk: Any) -> TokenUsage | None:
    usage = chunk.usage
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(details and details.cached_tokens) or 0,
    )


def _timings(chunk: Any) -> dict[str, float] | None:
    given = (chunk.model_extra or {}).get("timings")
    if not isinstance(given, dict):
        return None
    return {name: float(value) for name, value in given.items() if isinstance(value, (int, float))}


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
