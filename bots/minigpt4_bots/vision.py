"""The vision server as the bots use it: what it can do, and one answer as a stream of events.

Any server that speaks OpenAI's chat completions will do. What minigpt4-serve adds (limits on the model's card, places
in the waiting line, dropped messages) is used where it is there. Knows no platform and no text that people read: errors
are those of ``minigpt4_serve.errors``.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam

from minigpt4_bots.settings import AnswerSettings, ServerSettings
from minigpt4_serve import errors
from minigpt4_serve.client.failures import retry_after
from minigpt4_serve.errors import MiniGPT4Error, Overloaded, RateLimited, ServerUnreachable

__all__ = ["CutShort", "End", "Event", "Full", "Piece", "ServerLimits", "VisionServer", "Waiting"]

_CARD_LIFETIME_S = 60.0
_FIRST_RETRY_S = 2.0
_BY_CODE = {
    kind.code: kind
    for kind in (
        errors.AuthenticationFailed,
        errors.ContextLengthExceeded,
        errors.DeadlineExceeded,
        errors.EngineFailed,
        errors.InvalidImage,
        errors.ModelNotFound,
        errors.PayloadTooLarge,
    )
}
_BY_STATUS: dict[int, type[MiniGPT4Error]] = {
    400: errors.InvalidRequest,
    401: errors.AuthenticationFailed,
    403: errors.AuthenticationFailed,
    404: errors.ModelNotFound,
    408: errors.DeadlineExceeded,
    413: errors.PayloadTooLarge,
    422: errors.InvalidRequest,
    502: errors.ServerUnreachable,
    503: errors.EngineFailed,
    504: errors.ServerUnreachable,
}


class CutShort(ServerUnreachable):
    """The answer had begun, then the connection broke."""

    code = "cut_short"


@dataclass(frozen=True)
class Waiting:
    """The request stands in the server's line."""

    position: int
    """How many are ahead."""
    expected_wait_s: float | None = None


@dataclass(frozen=True)
class Full:
    """The server refused for now; it will be asked again by itself."""

    retry_in_s: float


@dataclass(frozen=True)
class Piece:
    """The next characters of the answer."""

    text: str


@dataclass(frozen=True)
class End:
    """The answer is complete. ``reason``: ``stop``, ``length`` or whatever the server says."""

    reason: str | None
    dropped_messages: int = 0
    """Oldest messages that the server left out to fit its context."""


Event = Waiting | Full | Piece | End


@dataclass(frozen=True)
class ServerLimits:
    """What the server says about its model; None where it doesn't."""

    model: str
    max_images: int | None = None
    max_image_bytes: int | None = None


class VisionServer:
    """A client of one server. Closing an ``answer`` generator, however, frees the server's slot at once."""

    def __init__(
        self, server: ServerSettings, answers: AnswerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._server = server
        self._answers = answers
        self._clock = clock
        self._limits: ServerLimits | None = None
        self._limits_until = 0.0
        self._client = openai.AsyncOpenAI(
            base_url=server.base_url,
            api_key=server.api_key.get_secret_value() if server.api_key else "none",
            timeout=openai.Timeout(server.timeout_s, connect=10.0),
            # The client would sleep silently; the person who waits is told instead.
            max_retries=0,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def limits(self) -> ServerLimits:
        """The model's name and limits, remembered for a minute; older ones serve while the server is away.

        Raises:
            MiniGPT4Error: the server can't be asked and the settings name no model.
        """
        if self._limits is not None and self._clock() < self._limits_until:
            return self._limits
        try:
            listed = await self._client.models.list()
            cards = [card.to_dict() for card in listed.data]
        except openai.OpenAIError as error:
            if self._limits is not None:
                return self._limits
            if self._server.model is not None:
                return ServerLimits(self._server.model)
            raise _translate(error) from error
        wanted = self._server.model
        card = next((card for card in cards if wanted in (None, card.get("id"))), {"id": wanted})
        if card["id"] is None:
            raise errors.ModelNotFound("The server lists no model; set 'server.model'.")
        self._limits = ServerLimits(str(card["id"]), _positive(card, "max_images"), _positive(card, "max_image_bytes"))
        self._limits_until = self._clock() + _CARD_LIFETIME_S
        return self._limits

    async def answer(
        self, messages: Sequence[ChatCompletionMessageParam], *, temperature: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Events of one answer; the last one is ``End``. A full server is asked again while patience lasts.

        Raises:
            Overloaded: still full after ``patience_s``.
            RateLimited: the key's share is used up, for longer than that.
            CutShort: the connection broke after the first piece.
            MiniGPT4Error: anything else, by kind.
        """
        patience_ends = self._clock() + self._server.patience_s
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                limits = await self.limits()
                async with aclosing(self._stream(messages, limits.model, temperature)) as events:
                    async for event in events:
                        yield event
                return
            except Overloaded as full:
                full.retry_after = wait_s = full.retry_after or retry_s
                if self._clock() + wait_s > patience_ends:
                    raise
                retry_s *= 2
            except errors.ModelNotFound:
                self._limits_until = 0.0  # the server may serve another model since
                raise
            yield Full(wait_s)
            await asyncio.sleep(wait_s)

    async def _stream(
        self, messages: Sequence[ChatCompletionMessageParam], model: str, temperature: float | None
    ) -> AsyncGenerator[Event, None]:
        chosen = self._answers.temperature if temperature is None else temperature
        request = self._client.chat.completions.with_streaming_response.create(
            model=model,
            messages=list(messages),
            stream=True,
            max_tokens=self._answers.max_tokens,
            temperature=openai.omit if chosen is None else chosen,
        )
        # Lines instead of the client's own chunks: only so the waiting line's comments are seen.
        async with AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(request)
            except openai.OpenAIError as error:
                raise _translate(error) from error
            headers = response.headers
            if (position := _number(headers, "x-minigpt4-queue-position")) is not None:
                yield Waiting(int(position), _number(headers, "x-minigpt4-expected-wait"))
            dropped = int(_number(headers, "x-minigpt4-dropped-messages") or 0)
            async for event in _events(response.iter_lines(), dropped):
                yield event


async def _events(lines: AsyncIterator[str], dropped: int) -> AsyncIterator[Event]:
    """Server-sent lines → events.

    Raises:
        CutShort, ServerUnreachable: the lines end, or break, before the answer does.
    """
    begun = False
    reason: str | None = None
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
            yield Waiting(int(ahead))
        if not line.startswith("data:"):
            continue
        chunk = _parse(line.removeprefix("data:"))
        if "error" in chunk:
            raise _by_body(chunk["error"], None)
        for choice in chunk.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                begun = True
                yield Piece(text)
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise _broken(begun)
    yield End(reason, dropped)


def _parse(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        return {}
    return chunk if isinstance(chunk, dict) else {}


def _broken(begun: bool) -> ServerUnreachable:
    if begun:
        return CutShort("The connection to the server was lost in the middle of the answer.")
    return ServerUnreachable("The server can't be reached.")


def _translate(error: openai.OpenAIError) -> MiniGPT4Error:
    """The client's exception as one of ours; its text stays in the cause."""
    if not isinstance(error, openai.APIStatusError):
        return ServerUnreachable("The server can't be reached.")
    status = error.status_code
    if status == 429:
        wait = retry_after(error) or 0.0
        if error.code == RateLimited.code:
            return RateLimited("The key's share of the server is used up.", retry_after=wait)
        return Overloaded("The server is full.", retry_after=wait)
    return _by_body(error.body, status)


def _by_body(body: object, status: int | None) -> MiniGPT4Error:
    code = body.get("code") if isinstance(body, Mapping) else None
    kind: type[MiniGPT4Error] | None = _BY_CODE.get(code) if isinstance(code, str) else None
    if kind is None and status is not None:
        kind = _BY_STATUS.get(status)
    return (kind or MiniGPT4Error)("The server refused the request.")


def _number(headers: Mapping[str, str], name: str) -> float | None:
    try:
        return max(0.0, float(headers[name]))
    except (KeyError, ValueError):
        return None


def _positive(card: Mapping[str, object], name: str) -> int | None:
    value = card.get(name)
    return value if isinstance(value, int) and value > 0 else None
