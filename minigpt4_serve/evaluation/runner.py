"""Asks questions, many at a time, and logs each answer as it completes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from minigpt4_serve.client import Completed, Event, TextDelta
from minigpt4_serve.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    MiniGPT4Error,
    ModelNotFound,
    PayloadTooLarge,
    ServerUnreachable,
)
from minigpt4_serve.evaluation.answer_log import AnswerLog, AnswerRecord
from minigpt4_serve.evaluation.questions import Question
from minigpt4_serve.images import image_url_part

__all__ = ["Ask", "ask_all", "chat_messages"]

Message = dict[str, Any]
Ask = Callable[[Sequence[Message]], AsyncGenerator[Event]]
"""Gives the events of one answer; closing it aborts the request."""

_OF_ONE_QUESTION = (InvalidRequest, PayloadTooLarge, DeadlineExceeded)
"""Failures that leave other questions a chance."""

_TRANSIENT = (ServerUnreachable, EngineFailed)
"""Failures that may pass, such as a timeout or a broken connection: one of them must not end a run of hours."""

_RETRY_DELAYS_S = (1.0, 5.0, 20.0)

_HOPELESS = 8
"""So many failures before the first answer mean that no question can be answered."""


async def ask_all(
    questions: Sequence[Question],
    ask: Ask,
    log: AnswerLog,
    *,
    in_flight: int,
    progress: Callable[[AnswerRecord], None] = lambda _: None,
) -> None:
    """Ask every question once, at most ``in_flight`` at a time.

    A question that can't be answered is logged with its error. If this is left early, requests in flight are aborted.

    Raises:
        MiniGPT4Error: the server can't answer any question; those answered so far are logged.
    """
    waiting = iter(questions)
    session = _Session(ask, log, progress)
    tasks = [asyncio.create_task(session.work(waiting)) for _ in range(min(in_flight, len(questions)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Session:
    def __init__(self, ask: Ask, log: AnswerLog, progress: Callable[[AnswerRecord], None]) -> None:
        self._ask = ask
        self._log = log
        self._progress = progress
        self._answered = 0
        self._failed = 0

    async def work(self, questions: Iterator[Question]) -> None:
        for question in questions:
            try:
                record = await self._answer_patiently(question)
                self._answered += 1
            except _OF_ONE_QUESTION as error:
                self._failed += 1
                if isinstance(error, ModelNotFound) or (not self._answered and self._failed >= _HOPELESS):
                    raise
                record = AnswerRecord(question.id, error=f"{error.code}: {error.message}")
            self._log.append(record)
            self._progress(record)

    async def _answer_patiently(self, question: Question) -> AnswerRecord:
        for delay_s in _RETRY_DELAYS_S:
            try:
                return await self._answer(question)
            except _TRANSIENT:
                await asyncio.sleep(delay_s)
        return await self._answer(question)

    async def _answer(self, question: Question) -> AnswerRecord:
        messages = await asyncio.to_thread(chat_messages, question)
        started = time.perf_counter()
        ttft_s: float | None = None
        text = ""
        end: Completed | None = None
        async with aclosing(self._ask(messages)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    ttft_s = time.perf_counter() - started if ttft_s is None else ttft_s
                    text += event.text
                elif isinstance(event, Completed):
                    end = event
        if end is None:
            raise MiniGPT4Error("An answer ended without its last event.")
        return AnswerRecord(
            question.id,
            answer=text,
            seconds=time.perf_counter() - started,
            ttft_s=ttft_s,
            finish_reason=end.reason,
            prompt_tokens=end.prompt_tokens,
            completion_tokens=end.completion_tokens,
            timings=dict(end.timings) if end.timings else None,
            certainty=getattr(end, "certainty", None),
        )


def chat_messages(question: Question) -> list[Message]:
    """The question as a chat in OpenAI's shape: the image precedes the first text.

    Raises:
        InvalidImage, InvalidRequest: the image can't be read or sent.
    """
    try:
        image = image_url_part(question.image.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"Can't read the image {question.image}.") from error
    turns = [*question.history, (question.prompt, None)]
    messages: list[Message] = []
    for number, (asked, answered) in enumerate(turns):
        text = {"type": "text", "text": asked}
        messages.append({"role": "user", "content": [image, text] if number == 0 else asked})
        if answered is not None:
            messages.append({"role": "assistant", "content": answered})
    return messages
