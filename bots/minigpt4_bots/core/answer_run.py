"""Produces one answer in a chat, from the placeholder message to the last edit."""

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from minigpt4_bots.core.access import Denial, Requester
from minigpt4_bots.core.conversation import ConversationScope, MessageKey, Turn
from minigpt4_bots.core.prompt_builder import BuiltPrompt
from minigpt4_bots.core.question import Question
from minigpt4_bots.core.send_queue import Priority
from minigpt4_bots.core.services import BotServices
from minigpt4_bots.core.streaming import Buttons, ChatGone, MessageTarget, StreamingMessage, TryLater, deliver
from minigpt4_bots.core.texts import Texts
from minigpt4_serve.client import Completed, Queued, Retrying, TextDelta
from minigpt4_serve.durations import describe_wait
from minigpt4_serve.errors import MiniGPT4Error, Overloaded, RateLimited

__all__ = ["AnswerRun", "StopNote"]

_log = logging.getLogger(__name__)


class StopNote(StrEnum):
    """The note below an answer that ended early; the value is its translation key."""

    STOPPED = "stopped.note"
    RESTARTED = "restarted.note"


class AnswerRun:
    """Asks the server and writes the answer to a chat.

    Args:
        services: shared by all answers.
        question: what is asked.
        target: where the answer appears.
        build_prompt: builds the prompt once the placeholder is on its way.
        replaces: the messages of an earlier answer: the first is edited, the others are deleted.
        temperature: overrides the one in the settings.
    """

    def __init__(
        self,
        services: BotServices,
        question: Question,
        target: MessageTarget,
        build_prompt: Callable[[], Awaitable[BuiltPrompt]],
        *,
        replaces: Sequence[MessageKey] = (),
        temperature: float | None = None,
    ) -> None:
        self._services = services
        self._question = question
        self._target = target
        self._build_prompt = build_prompt
        self._replaces = replaces
        self._temperature = temperature
        self._texts = services.texts_for(question.requester)
        self._message = StreamingMessage(
            limit=target.limit, measure=target.measure, status=self._texts("progress.looking")
        )
        self._deltas: list[str] = []
        self._question_number = 0
        self._record_id = 0
        self._streaming: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stop_note = StopNote.STOPPED
        self._stop_requested = False
        self._is_building = False
        self._is_discarded = False
        self._continues = True
        requester = question.requester
        self.scope = ConversationScope(requester.chat, requester.channel, services.access.pseudonym(requester))
        self.messages: set[MessageKey] = set()
        """The messages of this answer whose ids are known."""
        self.sending = asyncio.Lock()
        """Held while a message is being sent: people may press its button before its id is known."""
        self.done = asyncio.Event()
        """Set by the owner of the run once it has ended in any way."""

    @property
    def requester(self) -> Requester:
        """Who asks."""
        return self._question.requester

    @property
    def target(self) -> MessageTarget:
        """Where the answer appears."""
        return self._target

    @property
    def question_key(self) -> MessageKey | None:
        """The message with the question; None after ``discard``."""
        return None if self._is_discarded else self._question.key

    @property
    def is_complete(self) -> bool:
        """Whether the answer's text is final. Its last messages may not have been sent yet."""
        return self._message.finished

    def stop(self, note: StopNote = StopNote.STOPPED) -> None:
        """Abort the request and put ``note`` below the text so far.

        Images that are being read are still read, so that the question can be asked again.
        """
        self._stop_note = note
        self._stop_requested = True
        if self._is_building and not self._message.finished:
            self._message.finish(self._texts(note))
        elif self._streaming is not None:
            self._streaming.cancel()

    def discard(self) -> None:
        """Stop, and keep nothing of the answer in memory."""
        self._is_discarded = True
        self.stop()
        if self._streaming is not None:
            self._streaming.cancel()

    def end_conversation(self) -> None:
        """Don't let the next question continue from this answer."""
        self._continues = False

    def abandon(self) -> None:
        """Cancel the run without a last edit; the next start of the bot adds a note to the answer."""
        if self._task is not None and not self.done.is_set():
            self._task.cancel()

    async def run(self) -> Denial | None:
        """Write the answer and return after its last edit. If the question isn't allowed, return why not.

        Raises:
            sqlite3.Error: the question couldn't be counted; nothing was written.
        """
        services = self._services
        self._task = asyncio.current_task()
        writing: asyncio.Task[list[str]] | None = None
        try:
            if (denial := await self._begin()) is not None or self._is_stopped():
                return denial
            first: str | None = None
            if self._replaces:
                first = self._replaces[0].message
                self._add_message(first)
            self._streaming = asyncio.create_task(self._stream_answer())
            writing = asyncio.create_task(
                deliver(
                    self._message,
                    self._target,
                    services.send_queue,
                    first=first,
                    on_message=self._add_message,
                    sending=self.sending,
                )
            )
            await asyncio.wait({self._streaming, writing}, return_when=asyncio.FIRST_COMPLETED)
            if not self._message.finished:
                self._message.finish(self._texts(self._stop_note))
            messages = await writing
            if self._is_building:
                await asyncio.wait({self._streaming})
            if not self._is_discarded:
                self._store_answer(messages)
            services.storage.finish_answer(self._record_id)
            for old in self._replaces[1:]:
                await self._delete(old.message)
        except ChatGone:
            _log.info("can't write to the chat of user %s any more", self.scope.owner)
            services.storage.finish_answer(self._record_id)
        finally:
            for task in (self._streaming, writing):
                if task is not None:
                    task.cancel()
        return None

    def _is_stopped(self) -> bool:
        return self._stop_requested

    async def _begin(self) -> Denial | None:
        """Count the question and record that its answer begins; why not, if it isn't allowed."""
        services = self._services
        admitted = await services.access.admit(self._question.requester)
        if isinstance(admitted, Denial):
            return admitted
        self._question_number = admitted
        if self._is_stopped():
            self._withdraw_question()
            return None
        # This record is removed only once the answer is complete or can't be completed. If the process ends before
        # that, the next start finds the record and tells the user.
        try:
            self._record_id = await services.storage.begin_answer(
                platform=services.platform, user=self.scope.owner, note=self._sealed_record(None)
            )
        except sqlite3.Error:
            self._withdraw_question()
            raise
        if self._is_stopped():
            self._withdraw_question()
            services.storage.finish_answer(self._record_id)
        return None

    def _add_message(self, message: str) -> None:
        self.messages.add(self._target.key_for(message))
        self._services.storage.update_answer(self._record_id, self._sealed_record(message))

    def _sealed_record(self, message: str | None) -> bytes:
        record = {"location": self._question.location, "message": message, "language": self._texts.language}
        return self._services.pseudonyms.seal(json.dumps(record))

    async def _stream_answer(self) -> None:
        """Stream the server's answer into the message. Unless it is canceled, it always finishes the message."""
        texts = self._texts
        try:
            self._is_building = True
            prompt = await self._build_prompt()
            self._is_building = False
            if self._is_stopped():
                if prompt.has_images:
                    self._keep_question(prompt)
                return
            if not prompt.has_images:
                self._withdraw_question()
                hint = texts("hint.forgotten" if prompt.history_expired else "hint.nothing_usable")
                self._message.finish("\n".join([*prompt.notes, hint]), buttons=Buttons.NONE)
                return
            self._message.spoiler = any(turn.spoiler for turn in prompt.turns)
            self._keep_question(prompt)
            notes = await self._ask_server(prompt)
            if not self._message.has_text:
                notes.insert(0, texts("answer.empty"))
            self._message.finish("\n".join(notes))
        except MiniGPT4Error as error:
            self._withdraw_question()
            if isinstance(error, RateLimited):  # only the operator can fix it
                _log.error(
                    "This bot's API key has no quota left on the vision server for another %s. Raise the key's "
                    "limits, or lower the bot's own: 'limits' in its settings.",
                    describe_wait(error.retry_after),
                )
            else:
                _log.warning("an answer failed: %s", error.code)
            self._finish_failed(_error_text(texts, error))
        except Exception:
            self._withdraw_question()
            _log.exception("an answer failed")
            self._finish_failed(texts("error.internal_error"))

    def _finish_failed(self, text: str) -> None:
        if not self._message.finished:  # it is, if it was stopped while its images were read
            self._message.finish(text)

    def _keep_question(self, prompt: BuiltPrompt) -> None:
        self._services.conversations.put(self._question.key, prompt.turns[-1])
        self._services.conversations.set_latest(self.scope, self._question.key)

    async def _ask_server(self, prompt: BuiltPrompt) -> list[str]:
        """Stream the server's answer into the message; returns the notes that go below it."""
        texts = self._texts
        answers = self._services.settings.answers
        messages, notes = await self._services.prompt_builder.to_messages(prompt, texts)
        options: dict[str, float] = {"max_tokens": answers.max_tokens}
        temperature = answers.temperature if self._temperature is None else self._temperature
        if temperature is not None:
            options["temperature"] = temperature
        # Closing the stream aborts the request on the server when this task is canceled.
        async with contextlib.aclosing(self._services.client.answer(messages, **options)) as events:
            async for event in events:
                match event:
                    case TextDelta(text):
                        self._deltas.append(text)
                        self._message.feed(text)
                    case Queued(ahead, wait_s):
                        self._message.set_status(_queue_text(texts, ahead, wait_s))
                    case Retrying(retry_in_s):
                        self._message.set_status(texts("progress.full", wait=texts.describe_wait(retry_in_s)))
                    case Completed(reason=reason, dropped_messages=dropped_messages):
                        if reason == "length":
                            notes.append(texts("answer.cut"))
                        if dropped_messages:
                            notes.append(texts("answer.dropped_messages"))
        return notes

    def _withdraw_question(self) -> None:
        self._services.access.withdraw_question(self._question_number)

    def _store_answer(self, messages: Sequence[str]) -> None:
        """Store the answer, even an empty one, under each of its messages, so that replies lead to the question."""
        conversations = self._services.conversations
        asked = conversations.get(self._question.key)
        if asked is None or not messages:
            return
        keys = tuple(self._target.key_for(message) for message in messages)
        text = "".join(self._deltas).strip()
        answer = Turn("assistant", text, owner=self.scope.owner, parent=self._question.key)
        for key in keys:
            conversations.put(key, answer)
        conversations.put(self._question.key, replace(asked, answers=keys))
        if self._continues:
            conversations.set_latest(self.scope, keys[-1])
        else:
            conversations.reset(self.scope)

    async def _delete(self, message: str) -> None:
        with contextlib.suppress(TryLater, ChatGone):
            async with self._services.send_queue.slot(self._target.rate_key, Priority.CLEANUP):
                await self._target.delete(message)


def _queue_text(texts: Texts, ahead: int, wait_s: float | None) -> str:
    if ahead == 0:
        return texts("progress.next")
    if wait_s:
        return texts("progress.waiting_time", ahead=ahead, wait=texts.describe_wait(wait_s))
    return texts("progress.waiting", ahead=ahead)


def _error_text(texts: Texts, error: MiniGPT4Error) -> str:
    wait = texts.describe_wait(error.retry_after) if isinstance(error, Overloaded) else ""
    name = f"error.{error.code}"
    return texts(name if texts.has(name) else "error.internal_error", wait=wait)
