"""Questions, stops and regenerations of all people, one answer per person at a time.

Adapters build a ``Question``, implement ``MessageTarget`` and call

* ``ask`` for a new or edited question, which returns when the answer is complete;
* ``stop_message`` and ``regenerate`` for the buttons; ``core.commands`` for the commands;
* ``explain_unfinished`` once at the start, ``run_housekeeping`` as a task, ``close`` at the end.
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from minigpt4_bots.core.access import Denial, DenialReason, Requester
from minigpt4_bots.core.answer_run import AnswerRun, StopNote
from minigpt4_bots.core.conversation import ConversationScope, MessageKey, Turn
from minigpt4_bots.core.prompt_builder import BuiltPrompt
from minigpt4_bots.core.question import Question
from minigpt4_bots.core.send_queue import Priority, Rate, SendQueue
from minigpt4_bots.core.services import BotServices
from minigpt4_bots.core.settings import BotSettings, LimitSettings
from minigpt4_bots.core.storage import Storage, UnfinishedAnswer
from minigpt4_bots.core.streaming import ChatGone, Content, MessageTarget, TryLater
from minigpt4_bots.core.texts import Texts

__all__ = ["AnswerService", "StopOutcome"]

_log = logging.getLogger(__name__)

_PRUNE_EVERY_S = 30.0
_STORAGE_RETRY_S = 10.0
_CLOSE_WITHIN_S = 5.0
_MESSAGE_ID_WITHIN_S = 1.5
"""How long a pressed button waits for the id of its message. Discord drops an interaction after 3 s."""


class StopOutcome(StrEnum):
    """The result of a stop; the value is the name of its text."""

    STOPPED = "stopped.done"
    NOTHING_RUNNING = "stopped.nothing"
    NOT_OWNER = "stopped.other"


class AnswerService:
    """Runs the answers of one bot."""

    def __init__(self, services: BotServices) -> None:
        self._services = services
        self._runs: dict[str, AnswerRun] = {}
        """By the pseudonym of the person who asked."""
        self._replying_to: set[str] = set()

    @classmethod
    def create(
        cls,
        settings: BotSettings,
        platform: str,
        *,
        file: Path | None,
        overall: Sequence[Rate],
        rates_for: Callable[[str], Sequence[Rate]],
    ) -> "AnswerService":
        """Create the service with all its parts; the arguments are those of ``BotServices.create``.

        Raises:
            InvalidRequest: the database or its key file can't be used.
        """
        return cls(BotServices.create(settings, platform, file=file, overall=overall, rates_for=rates_for))

    @property
    def settings(self) -> BotSettings:
        """The bot's settings."""
        return self._services.settings

    @property
    def limits(self) -> LimitSettings:
        """The current limits, which may have been reloaded."""
        return self._services.access.limits

    @property
    def storage(self) -> Storage:
        """The bot's database."""
        return self._services.storage

    @property
    def send_queue(self) -> SendQueue:
        """The queue of all writes to the platform."""
        return self._services.send_queue

    def texts(self, requester: Requester) -> Texts:
        """The texts in the requester's language."""
        return self._services.texts_for(requester)

    def texts_in(self, language: str | None) -> Texts:
        """The texts for a platform's language tag."""
        return self._services.texts_in(language)

    def is_allowed(self, requester: Requester) -> bool:
        """Whether the access lists admit the requester."""
        return self._services.access.is_allowed(requester)

    def is_admin(self, requester: Requester) -> bool:
        """Whether the requester may stop and regenerate other people's answers."""
        return self._services.access.is_admin(requester)

    # Questions

    async def ask(self, question: Question, target: MessageTarget) -> None:
        """Answer a question, or reply why not. An edited question is answered again in place."""
        requester = question.requester
        owner = self._services.access.pseudonym(requester)
        while (run := self._runs.get(owner)) is not None and (run.question_key == question.key or run.is_complete):
            # A complete answer only has its last edits left and doesn't block the next question.
            run.stop()
            await run.done.wait()
        denial = Denial(DenialReason.BUSY) if run is not None else self._services.access.check_lists(requester)
        if denial is not None:
            await self.reply(requester, target, self.describe_denial(requester, denial))
            return
        conversations = self._services.conversations
        stored = conversations.get(question.key)
        parent = question.parent
        if parent is None and not question.attachments:
            parent = conversations.latest(self._scope(requester))
            if parent is None:
                await self.reply(requester, target, self.texts(requester)("hint.no_picture"))
                return
        question = replace(question, parent=None if parent == question.key else parent)
        builder = self._services.prompt_builder
        await self._run(
            AnswerRun(
                self._services,
                question,
                target,
                lambda: builder.build(question, owner, self.texts(requester)),
                replaces=stored.answers if stored else (),
            )
        )

    async def regenerate(
        self, requester: Requester, message: MessageKey, target: MessageTarget, *, location: str = ""
    ) -> Denial | None:
        """Answer the question of an answer's message again, in place; returns why not if that is impossible."""
        if (denial := await self.check_regenerate(requester, message)) is not None:
            return denial
        found = self._find_question(message)
        if found is None:
            return Denial(DenialReason.EXPIRED)
        if self._services.access.pseudonym(requester) in self._runs:
            return Denial(DenialReason.BUSY)
        key, asked = found

        async def build_prompt() -> BuiltPrompt:
            return self._services.prompt_builder.rebuild(asked)

        await self._run(
            AnswerRun(
                self._services,
                Question(requester=requester, key=key, text=asked.text, parent=asked.parent, location=location),
                target,
                build_prompt,
                replaces=asked.answers,
                temperature=self.settings.answers.regenerate_temperature,
            )
        )
        return None

    async def check_regenerate(self, requester: Requester, message: MessageKey) -> Denial | None:
        """What ``regenerate`` would deny at once; None if it would answer."""
        run = await self._find_run(message)
        if run is not None and run.is_complete:
            await run.done.wait()  # only its last edits are left
        owner = self._services.access.pseudonym(requester)
        found = self._find_question(message)
        if found is None:
            return Denial(DenialReason.EXPIRED)
        _, asked = found
        if asked.owner != owner and not self.is_admin(requester):
            return Denial(DenialReason.NOT_OWNER)
        if owner in self._runs:
            return Denial(DenialReason.BUSY)
        try:
            return await self._services.access.check(requester)
        except sqlite3.Error:
            return None  # the run itself reports it

    def was_asked(self, message: MessageKey) -> bool:
        """Whether the message is a question that was or is being answered, so that its edit asks again."""
        turn = self._services.conversations.get(message)
        return bool(turn and turn.answers) or any(run.question_key == message for run in self._runs.values())

    # Stopping and deleting

    def stop(self, requester: Requester) -> StopOutcome:
        """Stop the requester's own answer."""
        return _stop(self._runs.get(self._services.access.pseudonym(requester)))

    async def stop_message(self, requester: Requester, message: MessageKey) -> StopOutcome:
        """Stop the answer that a message belongs to."""
        run = await self._find_run(message)
        owner = self._services.access.pseudonym(requester)
        if run is not None and run.scope.owner != owner and not self.is_admin(requester):
            return StopOutcome.NOT_OWNER
        return _stop(run)

    def reset(self, requester: Requester) -> None:
        """Begin a new conversation with the requester's next question in this channel."""
        scope = self._scope(requester)
        self._services.conversations.reset(scope)
        for run in self._runs.values():
            if run.scope == scope:
                run.end_conversation()

    def forget(self, requester: Requester) -> None:
        """Delete the requester's conversations and images, and stop a running answer."""
        owner = self._services.access.pseudonym(requester)
        if (run := self._runs.get(owner)) is not None:
            run.discard()
        self._services.conversations.delete_owner(owner)

    # Short messages

    def describe_denial(self, requester: Requester, denial: Denial) -> str:
        """The denial in the requester's language."""
        texts = self.texts(requester)
        return texts(denial.reason, wait=texts.describe_wait(denial.wait_s or 0))

    async def reply(self, requester: Requester, target: MessageTarget, text: str) -> None:
        """Send one short message, or nothing while the previous one to the same person is still queued.

        So a flood of questions or commands can't make the bot flood the chat.
        """
        owner = self._services.access.pseudonym(requester)
        if owner in self._replying_to:
            return
        self._replying_to.add(owner)
        try:
            await self._send_short(target, text)
        finally:
            self._replying_to.discard(owner)

    async def _send_short(self, target: MessageTarget, text: str) -> None:
        while True:
            try:
                async with self.send_queue.slot(target.rate_key, Priority.FIRST):
                    await target.send(Content(text, own=True))
            except TryLater as refusal:
                self.send_queue.pause(target.rate_key, refusal.seconds)
            except ChatGone:
                return
            else:
                return

    # Start and end

    async def explain_unfinished(self, explain: Callable[[str, str | None, str], Awaitable[None]]) -> None:
        """Explain the answers that an earlier process left unfinished, and drop their notes.

        ``explain(location, message, text)`` writes ``text`` into the message, or sends a new one if it is None or
        deleted. It may raise TryLater, or ChatGone if the chat is unreachable. Notes that can't be decrypted are
        dropped without an explanation.
        """
        for unfinished in await self._unfinished_answers():
            try:
                note = json.loads(self._services.pseudonyms.unseal(unfinished.note))
            except ValueError:
                self.storage.finish_answer(unfinished.id)
                continue
            text = Texts(note["language"])(StopNote.RESTARTED)
            while True:
                try:
                    async with self.send_queue.slot(f"unfinished {unfinished.id}", Priority.ANSWER):
                        await explain(note["location"], note["message"], text)
                except TryLater as refusal:
                    await asyncio.sleep(refusal.seconds)
                    continue
                except ChatGone:
                    pass
                break
            self.storage.finish_answer(unfinished.id)

    async def _unfinished_answers(self) -> list[UnfinishedAnswer]:
        while True:
            try:
                return await self.storage.unfinished_answers(self._services.platform)
            except sqlite3.Error as error:
                _log.warning("The database can't be read (%s). Trying again.", error)
                await asyncio.sleep(_STORAGE_RETRY_S)

    async def run_housekeeping(self) -> None:
        """Delete expired conversations even if no questions arrive. Runs until canceled."""
        while True:
            await asyncio.sleep(_PRUNE_EVERY_S)
            self._services.conversations.prune()

    async def close(self) -> None:
        """Stop running answers with an explanation, for a few seconds; the next start explains the rest."""
        runs = list(self._runs.values())
        for run in runs:
            run.stop(StopNote.RESTARTED)
        if runs:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_WITHIN_S):
                    await asyncio.gather(*(run.done.wait() for run in runs))
            for run in runs:
                run.abandon()
        await self._services.client.aclose()
        await asyncio.to_thread(self.storage.close)

    async def _run(self, run: AnswerRun) -> None:
        owner = run.scope.owner
        self._runs[owner] = run
        try:
            denial = await run.run()
        except sqlite3.Error as error:
            _log.error("A question couldn't be counted: the database can't be used (%s).", error)
            text = self.texts(run.requester)("error.internal_error")
        else:
            text = self.describe_denial(run.requester, denial) if denial is not None else ""
        finally:
            # Also after a failure, for example of the database, the person may ask again.
            if self._runs.get(owner) is run:
                del self._runs[owner]
            run.done.set()
        if text:
            await self.reply(run.requester, run.target, text)

    async def _find_run(self, message: MessageKey) -> AnswerRun | None:
        """The running answer that the message belongs to."""

        def find() -> AnswerRun | None:
            return next((run for run in self._runs.values() if message in run.messages), None)

        if find() is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MESSAGE_ID_WITHIN_S):
                    for run in list(self._runs.values()):
                        if run.question_key is not None and run.question_key.chat == message.chat:
                            async with run.sending:
                                pass  # the id of its message is known now
        return find()

    def _find_question(self, answer: MessageKey) -> tuple[MessageKey, Turn] | None:
        """The question that an answer's message belongs to."""
        conversations = self._services.conversations
        found = conversations.get(answer)
        if found is None or found.role != "assistant" or found.parent is None:
            return None
        asked = conversations.get(found.parent)
        return None if asked is None else (found.parent, asked)

    def _scope(self, requester: Requester) -> ConversationScope:
        return ConversationScope(requester.chat, requester.channel, self._services.access.pseudonym(requester))


def _stop(run: AnswerRun | None) -> StopOutcome:
    if run is None or run.is_complete:
        return StopOutcome.NOTHING_RUNNING
    run.stop()
    return StopOutcome.STOPPED
