"""A whole chat with an OpenAI-compatible vision server: what it can do, and one answer as a stream of events.

Any server that speaks OpenAI's chat completions will do. What minigpt4-serve adds (limits and defaults on the model's
card, places in the waiting line, timings, dropped messages) is used where it is there. Knows HTTP and the error tree.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import openai
from pydantic import SecretStr

from minigpt4_serve.client.address import server_address
from minigpt4_serve.client.failures import error_of_code, to_minigpt4_error
from minigpt4_serve.errors import EngineFailed, ModelNotFound, Overloaded, ServerUnreachable, StreamInterrupted

__all__ = ["ChatClient", "Completed", "Event", "ModelCard", "Queued", "Retrying", "TextDelta"]

_CARD_LIFETIME_S = 60.0
_STANDARD = frozenset({"max_tokens", "seed", "stop", "temperature", "top_p"})
"""Options that every server knows; the others are minigpt4-serve's own."""


@dataclass(frozen=True)
class ModelCard:
    """What the server says about its model; None where it doesn't.

    Attributes:
        max_images, max_image_bytes: limits of one chat, and of one picture.
        context_length: tokens of question and answer together.
        max_beams: widest beam search; 1 if it can't search.
        boxes: the model reads and writes MiniGPT-v2's task tags and boxes.
        temperature, top_p, max_tokens: what the server uses if it isn't told.
    """

    name: str
    max_images: int | None = None
    max_image_bytes: int | None = None
    context_length: int | None = None
    max_beams: int = 1
    boxes: bool = False
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Queued:
    """The request stands in the server's line behind ``ahead`` others."""

    ahead: int
    expected_s: float | None = None


@dataclass(frozen=True)
class Retrying:
    """The server refused for now; it will be asked again by itself."""

    retry_in_s: float


@dataclass(frozen=True)
class TextDelta:
    """The next characters of the answer."""

    text: str


@dataclass(frozen=True)
class Completed:
    """The answer is complete.

    Attributes:
        reason: ``stop``, ``length`` or whatever the server says.
        prompt_tokens, cached_tokens, completion_tokens: usage; None if the server doesn't tell.
        timings: seconds by stage, as minigpt4-serve measures them.
        dropped_messages: oldest messages whose words didn't fit the model's context.
    """

    reason: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    timings: Mapping[str, float] | None = None
    dropped_messages: int = 0


Event = Queued | Retrying | TextDelta | Completed


class ChatClient:
    """A client of one server, for one event loop. Closing an ``answer`` generator frees the server's slot at once.

    Args:
        base_url: with or without ``/v1`` at its end.
        api_key: None if the server wants none.
        model: the server's first model if not given.
        timeout_s: longest silence of the server, in seconds.
        patience_s: a full server is asked again for that long in all.

    Raises:
        InvalidRequest: ``base_url`` isn't an address.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 120.0,
        patience_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = server_address(base_url)
        self._wanted = model
        self._patience_s = patience_s
        self._clock = clock
        self._card: ModelCard | None = None
        self._card_until = 0.0
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=api_key.get_secret_value() if api_key else "none",
            timeout=openai.Timeout(timeout_s, connect=10.0),
            max_retries=0,  # the client would sleep silently; whoever waits is told instead
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def card(self, *, fresh: bool = False) -> ModelCard:
        """The model's card, remembered for a minute; ``fresh`` asks again.

        If the server can't be asked, an older card or the wanted model's name will do, unless ``fresh``.

        Raises:
            ModelNotFound: the server lists no model, or not the wanted one.
            MiniGPT4Error: the server can't be asked.
        """
        if self._card is not None and not fresh and self._clock() < self._card_until:
            return self._card
        try:
            listed = await self._client.models.list()
            cards = [card.to_dict() for card in listed.data]
        except openai.OpenAIError as error:
            known = self._card or (ModelCard(self._wanted) if self._wanted else None)
            if known is not None and not fresh:
                return known
            raise to_minigpt4_error(error) from error
        except (TypeError, ValueError, AttributeError) as error:  # something else answers at this address
            raise EngineFailed("The server's list of models can't be understood.") from error
        found = next((card for card in cards if self._wanted in (None, card.get("id"))), None)
        if found is None:
            raise ModelNotFound("The server lists no such model; its operator must correct the model's name.")
        self._card = _read_card(found)
        self._card_until = self._clock() + _CARD_LIFETIME_S
        return self._card

    async def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> AsyncGenerator[Event, None]:
        """Events of one answer; the last one is ``Completed``. A full server is asked again while patience lasts.

        Args:
            messages: the chat in OpenAI's shape.
            options: fields of the request, such as ``temperature``.

        Raises:
            Overloaded: still full after ``patience_s``.
            ServerUnreachable: it can't be reached; ``StreamInterrupted``: it was lost in the middle.
            MiniGPT4Error: anything else, by kind.
        """
        patience_ends = self._clock() + self._patience_s
        while True:
            try:
                async with aclosing(self._stream(messages, options)) as events:
                    async for event in events:
                        yield event
                return
            except Overloaded as full:
                wait_s = full.retry_after
                if self._clock() + wait_s > patience_ends:
                    raise
            except ModelNotFound:
                self._card_until = 0.0  # the server may serve another model since
                raise
            yield Retrying(wait_s)
            await asyncio.sleep(wait_s)

    async def _stream(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        request: dict[str, Any] = {name: value for name, value in options.items() if name in _STANDARD}
        request["extra_body"] = {name: value for name, value in options.items() if name not in _STANDARD} or None
        request |= {"messages": list(messages), "stream": True, "stream_options": {"include_usage": True}}
        request["model"] = (await self.card()).name
        async with AsyncExitStack() as stack:
            try:
                # Lines instead of the client's own chunks: only so the waiting line's comments are seen.
                response = await stack.enter_async_context(
                    self._client.chat.completions.with_streaming_response.create(**request)
                )
            except openai.OpenAIError as error:
                raise to_minigpt4_error(error) from error
            headers = response.headers
            if (ahead := _number(headers, "x-minigpt4-queue-position")) is not None:
                yield Queued(int(ahead), _number(headers, "x-minigpt4-expected-wait"))
            dropped = int(_number(headers, "x-minigpt4-dropped-messages") or 0)
            async for event in _events(response.iter_lines(), dropped):
                yield event


def _read_card(card: Mapping[str, Any]) -> ModelCard:
    defaults, can = (_mapping(card.get(name)) for name in ("defaults", "capabilities"))
    return ModelCard(
        name=str(card.get("id")),
        max_images=_whole(card, "max_images"),
        max_image_bytes=_whole(card, "max_image_bytes"),
        context_length=_whole(card, "context_length"),
        max_beams=_whole(can, "max_beams") or 1,
        boxes=can.get("boxes") is True,
        temperature=_number(defaults, "temperature"),
        top_p=_number(defaults, "top_p"),
        max_tokens=_whole(defaults, "max_tokens"),
    )


async def _events(lines: AsyncIterator[str], dropped: int) -> AsyncIterator[Event]:
    """Server-sent lines → events.

    Raises:
        StreamInterrupted, ServerUnreachable: the lines end, or break, before the answer does.
        MiniGPT4Error: what the server reports.
    """
    begun = False
    reason: str | None = None
    last: Mapping[str, Any] = {}
    while True:
        try:
            line = await anext(lines, None)
        except Exception as error:  # whichever HTTP library the client uses has its own tree
            raise _broken(begun) from error
        if line is None:
            break
        if line.startswith("data:") and line.removeprefix("data:").strip() == "[DONE]":
            reason = reason or "stop"  # some servers never say why they end
            break
        if line.startswith(": waiting, ") and (ahead := line.split()[2]).isdigit():
            yield Queued(int(ahead))
        if not line.startswith("data:"):
            continue
        chunk = _parse(line.removeprefix("data:"))
        if "error" in chunk:
            raise error_of_code(_mapping(chunk["error"]).get("code"))
        if chunk.get("usage"):
            last = chunk
        for choice in chunk.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                begun = True
                yield TextDelta(text)
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise _broken(begun)
    yield _end(reason, last, dropped)


def _end(reason: str, last: Mapping[str, Any], dropped: int) -> Completed:
    usage, timings = _mapping(last.get("usage")), _mapping(last.get("timings"))
    return Completed(
        reason,
        prompt_tokens=_whole(usage, "prompt_tokens"),
        cached_tokens=_whole(_mapping(usage.get("prompt_tokens_details")), "cached_tokens"),
        completion_tokens=_whole(usage, "completion_tokens"),
        timings={name: float(value) for name, value in timings.items() if isinstance(value, (int, float))} or None,
        dropped_messages=dropped,
    )


def _broken(begun: bool) -> ServerUnreachable:
    if begun:
        return StreamInterrupted("The connection to the server was lost in the middle of the answer.")
    return ServerUnreachable("The server can't be reached.")


def _parse(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        return {}
    return chunk if isinstance(chunk, dict) else {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(values: Mapping[str, Any], name: str) -> float | None:
    try:
        return max(0.0, float(values[name]))
    except (KeyError, TypeError, ValueError):
        return None


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and value >= 0 else None
