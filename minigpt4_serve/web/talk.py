"""One person's chat: questions, pictures, answers, and the one that is being written. Knows the server's client only.

Nothing here knows Gradio or HTML: ``view.py`` says how a talk looks, ``page.py`` carries it to a browser.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from minigpt4_serve.boxes import parse_groundings
from minigpt4_serve.client.chat_client import ChatClient, Completed, ModelCard, Queued, Retrying, TextDelta
from minigpt4_serve.client.failures import describe_wait
from minigpt4_serve.client.vision import DEFAULT_QUESTION
from minigpt4_serve.errors import MiniGPT4Error, Overloaded, RateLimited, ServerUnreachable
from minigpt4_serve.images import image_url_part
from minigpt4_serve.web.pictures import Shelf, ShownPicture

__all__ = ["Exchange", "Options", "Question", "Talk"]

_log = logging.getLogger(__name__)

_PACE_S = 0.1
"""Shortest time between two updates of the page: words that come faster are shown together. Browsers of slow phones
must keep up, or Stop comes late."""


class Options(BaseModel):
    """How to answer; what isn't given is left to the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    beams: int | None = Field(default=None, ge=1)


class Question(BaseModel):
    """What a browser sends.

    Attributes:
        pictures: keys of the pictures that this question brings.
        instead: it takes the place of the last question and its answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(default="", max_length=4000)
    pictures: tuple[str, ...] = Field(default=(), max_length=64)
    instead: bool = False
    options: Options = Options()


@dataclass(eq=False)
class Exchange:
    """A question and its answer while it grows.

    Attributes:
        waiting: the place in the server's line, or that it is full; None once the answer has begun.
        problem: why there is no whole answer, in one sentence.
        first_words_s, seconds: until the first piece, and in all.
        drawn: the picture with the answer's boxes.
    """

    question: str
    pictures: tuple[ShownPicture, ...]
    text: str = ""
    state: Literal["asked", "writing", "done", "stopped", "failed"] = "asked"
    waiting: Queued | Retrying | None = None
    problem: str = ""
    end: Completed | None = None
    first_words_s: float = 0.0
    seconds: float = 0.0
    drawn: ShownPicture | None = None


class Talk:
    """A chat in memory.

    Attributes:
        session: Gradio's name for the browser tab it belongs to.
        card: what the server last said about its model; None while it doesn't answer.
        trouble: why it doesn't, in one sentence.
    """

    def __init__(self) -> None:
        self.session = ""
        self.card: ModelCard | None = None
        self.trouble = ""
        self.exchanges: list[Exchange] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Is an answer being written?"""
        return self._writing is not None and not self._writing.done()

    async def look(self, server: ChatClient) -> None:
        """Ask the server what it serves."""
        try:
            self.card, self.trouble = await server.card(fresh=True), ""
        except MiniGPT4Error as error:
            self.card, self.trouble = None, _sentence(error, begun=False)

    async def ask(self, server: ChatClient, shelf: Shelf, asked: Question) -> AsyncGenerator[None]:
        """Ask, and yield whenever there is something new to show. Closing the generator stops the answer.

        A last question that got no word of an answer is replaced; its pictures come along.
        """
        if self.busy:
            return
        kept: tuple[ShownPicture, ...] = ()
        if self.exchanges and (asked.instead or not self.exchanges[-1].text):
            replaced = self.exchanges.pop()
            kept = () if asked.instead else replaced.pictures
        found = [shelf.take(key) for key in asked.pictures]
        pictures = (*kept, *(picture for picture in found if picture is not None))
        question = asked.text.strip() or (DEFAULT_QUESTION if pictures else "")
        if not question:
            return
        exchange = Exchange(question, pictures)
        self.exchanges.append(exchange)
        if None in found:
            exchange.state, exchange.problem = "failed", "A picture is no longer in memory. Add it again."
            return
        async with aclosing(self._follow(server, shelf, asked.options)) as news:
            async for _ in news:
                yield

    async def ask_again(self, server: ChatClient, shelf: Shelf, options: Options) -> AsyncGenerator[None]:
        """The last question once more; its answer is thrown away."""
        if self.busy or not self.exchanges:
            return
        last = self.exchanges[-1]
        self.exchanges[-1] = Exchange(last.question, last.pictures)
        async with aclosing(self._follow(server, shelf, options)) as news:
            async for _ in news:
                yield

    def stop(self) -> None:
        """Stop the answer that is being written, at the server, too."""
        if self._writing is not None:
            self._writing.cancel()

    def start_over(self) -> None:
        """Forget everything."""
        self.stop()
        self.exchanges.clear()

    async def _follow(self, server: ChatClient, shelf: Shelf, options: Options) -> AsyncGenerator[None]:
        exchange = self.exchanges[-1]
        self._writing = writing = asyncio.create_task(self._write(exchange, server, shelf, options))
        shown: object = None
        try:
            while not writing.done():
                now = (exchange.state, exchange.waiting, len(exchange.text))
                if now != shown:
                    shown = now
                    yield
                await asyncio.wait({writing}, timeout=_PACE_S)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            if exchange.state in ("asked", "writing"):
                exchange.state = "stopped"  # it was cancelled before its first step

    async def _write(self, exchange: Exchange, server: ChatClient, shelf: Shelf, options: Options) -> None:
        started = time.perf_counter()
        try:
            messages = await asyncio.to_thread(_messages, self.exchanges[: self.exchanges.index(exchange) + 1])
            await self._read(exchange, server, messages, options, started)
            exchange.seconds = time.perf_counter() - started
            exchange.state = "done"
            await asyncio.to_thread(self._draw, exchange, shelf)
        except asyncio.CancelledError:
            exchange.seconds = time.perf_counter() - started
            if exchange.state != "done":
                exchange.state = "stopped"
        except MiniGPT4Error as error:
            exchange.state, exchange.problem = "failed", _sentence(error, begun=bool(exchange.text))
            if isinstance(error, ServerUnreachable):
                self.card, self.trouble = None, _sentence(error, begun=False)
        except Exception:
            _log.exception("an answer failed in the page")
            exchange.state, exchange.problem = "failed", "Something went wrong in the page; its log has the details."
        finally:
            exchange.waiting = None

    async def _read(
        self,
        exchange: Exchange,
        server: ChatClient,
        messages: Sequence[dict[str, Any]],
        options: Options,
        started: float,
    ) -> None:
        self.card, self.trouble = await server.card(), ""
        async with aclosing(server.answer(messages, **options.model_dump(exclude_none=True))) as events:
            async for event in events:
                match event:
                    case Queued() | Retrying():
                        exchange.waiting = event
                    case TextDelta(text):
                        exchange.first_words_s = exchange.first_words_s or time.perf_counter() - started
                        exchange.state, exchange.waiting = "writing", None
                        exchange.text += text
                    case Completed():
                        exchange.end = event

    def _draw(self, exchange: Exchange, shelf: Shelf) -> None:
        """Draw the answer's boxes on the newest picture of the chat, the one that v2 speaks about."""
        groundings = parse_groundings(exchange.text)
        seen = [picture for one in self.exchanges for picture in one.pictures]
        if groundings and seen:
            exchange.drawn = shelf.with_boxes(seen[-1], groundings)


def _messages(exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """The chat as the API takes it, the last question at its end."""
    messages: list[dict[str, Any]] = []
    for exchange in exchanges:
        images = [image_url_part(one.picture.data) for one in exchange.pictures]
        messages.append({"role": "user", "content": [*images, {"type": "text", "text": exchange.question}]})
        if exchange is not exchanges[-1]:
            messages.append({"role": "assistant", "content": exchange.text})
    return messages


_SENTENCES = {
    "context_length_exceeded": "This is too long for the model. Ask a shorter question, or start over.",
    "invalid_image": "The server can't read one of the pictures. Start over with another file.",
    "payload_too_large": "The pictures are too large for the server. Start over with fewer or smaller ones.",
    "invalid_api_key": "The server refused the page's key. Whoever runs this page must set the right one.",
    "model_not_found": "The server has another model now. Try again to ask that one.",
    "deadline_exceeded": "The server's time for this answer ran out. Ask for a shorter one, or try again in a moment.",
    "engine_failed": "The server failed while answering. Try again in a moment.",
}


def _sentence(error: MiniGPT4Error, *, begun: bool) -> str:
    """What a person reads; nothing that a server wrote."""
    if isinstance(error, RateLimited):
        return f"The page's share of the server is used up. Try again in {describe_wait(error.retry_after)}."
    if isinstance(error, Overloaded):
        return f"The server is full. Try again in {describe_wait(error.retry_after)}."
    if isinstance(error, ServerUnreachable):
        return "The connection was lost in the middle of the answer." if begun else "The server does not answer."
    return _SENTENCES.get(error.code, "The server refused this question. Ask it in other words, or start over.")
