"""The response of ``POST /chat/completions`` as events, streamed or whole.

Of OpenAI's shape only the text is required: servers leave out usage, timings, finish reasons, whole lists. Lines are
read here instead of by the OpenAI client, because it drops the comments that report the queue position.
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from minigpt4_serve.client.events import Completed, Event, Queued, TextDelta
from minigpt4_serve.client.failures import connection_lost, error_of_code, is_read_timeout, unreadable_response
from minigpt4_serve.client.json_fields import get_int, get_mapping, get_number
from minigpt4_serve.errors import MiniGPT4Error

__all__ = ["read_response", "read_stream"]

_QUEUE_COMMENT = re.compile(r": waiting, (\d+) ahead")


async def read_response(response: Any) -> AsyncGenerator[Event]:
    """Events of a response whose body hasn't been read; the last one is ``Completed``.

    Args:
        response: of the OpenAI client's ``with_streaming_response``.

    Raises:
        ServerUnreachable, StreamInterrupted, EngineFailed: as ``read_stream``.
        MiniGPT4Error: the server reports an error.
    """
    headers = response.headers
    if (ahead := get_number(headers, "x-minigpt4-queue-position")) is not None:
        yield Queued(int(ahead), get_number(headers, "x-minigpt4-expected-wait"))
    dropped_messages = int(get_number(headers, "x-minigpt4-dropped-messages") or 0)
    if not headers.get("content-type", "").startswith("application/json"):
        async with aclosing(read_stream(response.iter_lines(), dropped_messages)) as events:
            async for event in events:
                yield event
        return
    reader = _ChunkReader(dropped_messages)
    try:
        body = await response.read()
    except Exception as error:
        raise reader.lost(error) from error
    text = reader.read(body)
    if not reader.has_choices:
        raise unreadable_response()
    if text:
        yield TextDelta(text)
    yield reader.completed()


async def read_stream(lines: AsyncIterator[str], dropped_messages: int = 0) -> AsyncGenerator[Event]:
    """Events of a stream's lines; the last one is ``Completed``.

    Raises:
        StreamInterrupted: the lines end, or break, in the middle of the answer.
        ServerUnreachable: they break before it begins.
        EngineFailed: they aren't a stream of completion chunks.
        MiniGPT4Error: the server reports an error.
    """
    reader = _ChunkReader(dropped_messages)
    while True:
        try:
            line = await anext(lines, None)
        except Exception as error:  # of the HTTP library that the installed OpenAI client uses, httpx or httpx2
            raise reader.lost(error) from error
        if line is None:
            break
        if found := _QUEUE_COMMENT.match(line):
            yield Queued(int(found[1]))
        data = line.removeprefix("data:").strip()
        if data == line or not data:
            continue
        if data == "[DONE]":
            reader.reason = reader.reason or "stop"  # some servers send no finish reason
            break
        if text := reader.read(data):
            yield TextDelta(text)
    if not reader.has_chunks and reader.reason is None:
        raise unreadable_response()
    if reader.reason is None:
        raise reader.lost()
    yield reader.completed()


@dataclass
class _ChunkReader:
    """Reads chunks, and keeps what they carry besides text."""

    dropped_messages: int
    reason: str | None = None
    has_chunks: bool = False
    has_choices: bool = False
    has_text: bool = False
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)

    def read(self, data: str | bytes) -> str:
        """The text that a chunk, or a whole completion, adds.

        Raises:
            EngineFailed: it isn't one.
            MiniGPT4Error: it reports an error.
        """
        try:
            return self._read(json.loads(data))
        except (ValueError, TypeError, AttributeError) as error:  # not JSON, or a list where an object should be
            raise unreadable_response() from error

    def _read(self, chunk: Any) -> str:
        if reported := chunk.get("error"):
            raise error_of_code(reported.get("code") if isinstance(reported, Mapping) else None)
        self.has_chunks = True
        self.usage = get_mapping(chunk, "usage") or self.usage
        self.timings = get_mapping(chunk, "timings") or self.timings
        self.dropped_messages = get_int(chunk, "dropped_messages") or self.dropped_messages
        text = ""
        for choice in chunk.get("choices") or ():
            self.has_choices = True
            text += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
            self.reason = choice.get("finish_reason") or self.reason
        self.has_text = self.has_text or bool(text)
        return text

    def lost(self, error: Exception | None = None) -> MiniGPT4Error:
        return connection_lost(in_answer=self.has_text, timed_out=is_read_timeout(error))

    def completed(self) -> Completed:
        seconds = {name: float(value) for name, value in self.timings.items() if isinstance(value, (int, float))}
        return Completed(
            self.reason or "stop",
            prompt_tokens=get_int(self.usage, "prompt_tokens"),
            cached_tokens=get_int(get_mapping(self.usage, "prompt_tokens_details"), "cached_tokens"),
            completion_tokens=get_int(self.usage, "completion_tokens"),
            timings=seconds or None,
            dropped_messages=self.dropped_messages,
        )
