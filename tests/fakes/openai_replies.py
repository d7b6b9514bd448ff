"""Scripts for the fake OpenAI server: what it answers, step by step."""

import asyncio
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fakes.openai_requests import ChatRequest

KEY = "sk-test-4f9a1c"
SECRET = f"SECRET upstream says {KEY} at /srv/secret/model"
"""The message of every error. Clients must not repeat it."""
USAGE = {
    "prompt_tokens": 52,
    "completion_tokens": 14,
    "total_tokens": 66,
    "prompt_tokens_details": {"cached_tokens": 40},
}
TIMINGS = {"images_s": 0.01, "total_s": 0.5}


class Gate:
    """Replies wait at it until a test opens it, from any thread."""

    def __init__(self) -> None:
        self._opened: Future[None] = Future()

    def open(self) -> None:
        with suppress(InvalidStateError):  # it is open
            self._opened.set_result(None)

    def close(self) -> None:
        self._opened = Future()

    async def wait(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._opened))


@dataclass(frozen=True)
class ErrorEvent:
    """An error as an event of the stream, and the stream's end."""

    code: str = "engine_failed"


class Cut:
    """The connection is closed in the middle of the stream."""


class Feed:
    """Chunks of a stream that a test adds while the stream runs, from any thread."""

    def __init__(self) -> None:
        self._chunks: deque[str | None] = deque()
        self._added = Gate()

    def add(self, chunk: str) -> None:
        self._chunks.append(chunk)
        self._added.open()

    def end(self) -> None:
        self._chunks.append(None)
        self._added.open()

    async def get(self) -> str | None:
        while not self._chunks:
            self._added = Gate()
            if not self._chunks:  # nor was anything added before the new gate
                await self._added.wait()
        return self._chunks.popleft()


Text = Callable[[ChatRequest], "str | Iterable[Step]"]
Step = str | bytes | dict[str, Any] | Gate | ErrorEvent | Cut | Text
"""Part of a stream: a chunk's text, a line as it is, an event's JSON, a wait, an end, or what a function returns."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        chunks: a text is sent word by word; a function returns the text or the steps for a request.
        delay_s: seconds before each chunk and after each comment.
        hold: awaited before the response begins.
        comments: sent at the beginning of the stream.
        bare: send the steps without role, finish reason, usage and end mark around them.
        code: of the error, with a status other than 200.
        body: sent instead, whatever the status: bytes as they are, other values as JSON.
    """

    chunks: "str | Iterable[Step] | Feed | Text" = ()
    delay_s: float = 0.0
    hold: Gate | None = None
    comments: tuple[str, ...] = ()
    finish_reason: str | None = "stop"
    bare: bool = False
    status: int = 200
    code: str | None = None
    body: Any = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and self.body is None

    def steps(self, request: ChatRequest) -> Iterator[Step]:
        """All steps, unless they come from a feed."""
        return iter(()) if isinstance(self.chunks, Feed) else _steps(self.chunks, request)


def refusal(status: int, code: str | None = None, *, retry_after: str | None = None) -> Reply:
    return Reply(status=status, code=code, headers={} if retry_after is None else {"retry-after": retry_after})


Answer = Reply | str | Text
"""What isn't a reply stands for the default reply with these chunks."""

ENDLESS = Reply(lambda _: itertools.repeat("more "), delay_s=0.01)


def colors(request: ChatRequest) -> str:
    """``red and blue``."""
    return " and ".join(request.colors) or "I see no picture."


def colors_and_questions(request: ChatRequest) -> str:
    return f"I see {', '.join(request.colors) or 'no picture'}. You asked: {' | '.join(request.questions)}"


def count_and_question(request: ChatRequest) -> list[Step]:
    return [f"I see {len(request.images)} picture(s).", f" You asked: {request.text}"]


def _steps(chunks: str | Iterable[Step] | Text, request: ChatRequest) -> Iterator[Step]:
    if callable(chunks):
        chunks = chunks(request)
    if isinstance(chunks, str):
        yield from re.split(r"(?<= )", chunks)
        return
    for step in chunks:
        yield from _steps(step, request) if callable(step) else (step,)
