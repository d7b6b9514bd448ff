"""A question's whole way: may it be asked, its pictures, the conversation, the server's answer, the messages.

The one place that brings the core together. Knows no platform: adapters build ``Question``, implement ``Outlet`` and
call

* ``Answering.ask(question, outlet)`` for a new or edited question; returns when the answer is complete;
* ``stop_shown(asker, message)``, ``regenerate(asker, message, outlet)`` for the buttons;
* ``stop(asker)``, ``reset(asker)``, ``forget(asker)``, ``help(…)``, ``privacy(…)`` for the commands;
* ``texts(asker)`` for every sentence;
* ``explain_unfinished(explain)`` once at the start, ``housekeeping()`` as a task, ``close()`` at the end.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from minigpt4_bots.core.access import Asker, Gate, Refusal
from minigpt4_bots.core.conversation import (
    Memory,
    MessageKey,
    Place,
    Turn,
    keep_newest_pictures,
    keep_newest_words,
    merge_turns,
    to_messages,
)
from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.prompt_builder import Collected, Collector
from minigpt4_bots.core.question import Question
from minigpt4_bots.core.send_queue import Rate, Traffic, Urgency
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.storage import Storage
from minigpt4_bots.core.streaming import Buttons, ChatGone, Content, Display, Stage, TryLater, deliver
from minigpt4_bots.core.texts import Texts, choose_language
from minigpt4_serve.client.chat_client import ChatClient, Completed, Queued, Retrying, TextDelta
from minigpt4_serve.client.failures import describe_wait
from minigpt4_serve.errors import MiniGPT4Error, Overloaded, RateLimited

__all__ = ["Answering", "Outlet"]

_log = logging.getLogger(__name__)

_PRUNE_EVERY_S = 30.0
_GOODBYE_S = 5.0
_KNOWN_WITHIN_S = 1.5
"""A button's message whose id the platform hasn't told yet is waited for: Discord gives a click up after 3 s."""


class Outlet(Stage, Protocol):
    """A ``Stage`` that also tells where its messages stand."""

    traffic_key: str
    """What the platform's rates are counted by: the chat."""

    def key_of(self, message: str) -> MessageKey:
        """The key under which replies to a message of this outlet will come."""


@dataclass
class _Active:
    """An answer being given."""

    question: MessageKey
    place: Place
    display: Display
    done: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None
    whole: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    """In which the answer is given, its last words included."""
    messages: set[MessageKey] = field(default_factory=set)
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one more is sent: people may see it, and press its button, before its id is known here."""
    note: str = ""
    """Why it was stopped."""
    goes_on: bool = True
    """False: the next question begins a new conversation all the same."""


class Answering:
    """Everything between a message and its answer."""

    def __init__(
        self,
        settings: BotSettings,
        platform: str,
        *,
        server: ChatClient,
        memory: Memory,
        gate: Gate,
        storage: Storage,
        pseudonyms: Pseudonyms,
        traffic: Traffic,
    ) -> None:
        self._settings = settings
        self._platform = platform
        self._server = server
        self._memory = memory
        self._gate = gate
        self.storage = storage
        self._pseudonyms = pseudonyms
        self.traffic = traffic
        self._collector = Collector(settings, platform, server=server, memory=memory, pseudonyms=pseudonyms)
        self._active: dict[str, _Active] = {}
        self._replying_to: set[str] = set()

    @classmethod
    def build(
        cls,
        settings: BotSettings,
        platform: str,
        *,
        file: Path | None,
        overall: Sequence[Rate],
        rates_of: Callable[[str], Sequence[Rate]],
    ) -> "Answering":
        """With all its parts. ``overall`` and ``rates_of`` (by ``Outlet.traffic_key``) are the platform's limits.

        Raises:
            InvalidRequest: the database can't be used.
        """
        storage, server = Storage(settings.database), settings.server
        pseudonyms = Pseudonyms.beside(settings.database)
        return cls(
            settings,
            platform,
            server=ChatClient(
                server.base_url,
                server.api_key,
                model=server.model,
                timeout_s=server.timeout_s,
                patience_s=server.patience_s,
            ),
            memory=Memory(lifetime_s=settings.pictures.lifetime_s, max_bytes=settings.pictures.memory_bytes),
            gate=Gate(settings, storage, pseudonyms, file=file),
            storage=storage,
            pseudonyms=pseudonyms,
            traffic=Traffic(overall, rates_of),
        )

    # What people can do

    async def ask(self, question: Question, outlet: Outlet) -> None:
        """Answer a question, or say why not. A message that was answered before (an edited one) is answered anew."""
        owner = self._gate.user(question.asker)
        texts = self.texts(question.asker)
        while (active := self._active.get(owner)) is not None and (
            active.question == question.key or active.display.finished
        ):
            # Complete answers only have their last words to be shown: who can see them may ask on.
            self._stop(active, "")
            await active.done.wait()
        if active is not None:
            await self.reply(question.asker, outlet, texts("refused.busy"))
            return
        if (refusal := self._gate.check(question.asker)) is not None:
            await self.reply(question.asker, outlet, self._refusal_text(texts, refusal))
            return
        before = self._memory.get(question.key)
        parent = question.parent
        if parent is None and not question.attachments:
            parent = self._memory.latest(self._place(question.asker))
        if parent is None and not question.attachments:
            await self.reply(question.asker, outlet, texts("hint.no_picture"))
            return
        question = replace(question, parent=None if parent == question.key else parent)
        await self._answer(
            question,
            outlet,
            lambda: self._collector.collect(question, owner, texts),
            reuse=before.answers if before else (),
        )

    async def regenerate(self, asker: Asker, message: MessageKey, outlet: Outlet, *, place: str = "") -> str | None:
        """Answer again the question that ``message`` answers, in its place; a sentence if that can't be done."""
        if (why_not := await self.why_not_regenerate(asker, message)) is not None:
            return why_not
        key, asked = self._question_of(message)
        assert key is not None
        assert asked is not None

        async def collect() -> Collected:
            return Collected([*self._collector.known_chain(asked.parent), asked])

        await self._answer(
            Question(asker=asker, key=key, text=asked.text, parent=asked.parent, place=place),
            outlet,
            collect,
            reuse=asked.answers,
            temperature=self._settings.answers.regenerate_temperature,
        )
        return None

    async def why_not_regenerate(self, asker: Asker, message: MessageKey) -> str | None:
        """The sentence that ``regenerate`` would return at once; None if it would answer."""
        showing = await self._shown_by(message)
        if showing is not None and showing.display.finished:
            await showing.done.wait()  # only its last words are to be shown
        owner = self._gate.user(asker)
        texts = self.texts(asker)
        _, asked = self._question_of(message)
        if asked is None:
            return texts("again.forgotten")
        if asked.owner != owner and not self._gate.is_admin(asker):
            return texts("stopped.other")
        if owner in self._active:
            return texts("refused.busy")
        refusal = self._gate.check(asker)
        return None if refusal is None else self._refusal_text(texts, refusal)

    def stop(self, asker: Asker) -> str:
        """Stop the asker's own answer; returns what to tell them."""
        return self._stop_active(self._active.get(self._gate.user(asker)), self.texts(asker))

    async def stop_shown(self, asker: Asker, message: MessageKey) -> str:
        """Stop the answer that ``message`` belongs to; returns what to tell who pressed its button."""
        active = await self._shown_by(message)
        texts = self.texts(asker)
        if active is not None and active.place.owner != self._gate.user(asker) and not self._gate.is_admin(asker):
            return texts("stopped.other")
        return self._stop_active(active, texts)

    def reset(self, asker: Asker) -> str:
        """The asker's next question here begins a new conversation; returns what to tell them."""
        place = self._place(asker)
        self._memory.reset(place)
        for active in self._active.values():
            active.goes_on = active.goes_on and active.place != place
        return self.texts(asker)("reset.done")

    def forget(self, asker: Asker) -> str:
        """Drop all that the asker sent, and stop a running answer; returns what to tell them."""
        owner = self._gate.user(asker)
        if (active := self._active.get(owner)) is not None:
            self._stop(active, self.texts(asker)("stopped.note"))
            active.question = MessageKey("", "")  # what it still brings isn't remembered
        self._memory.forget(owner)
        return self.texts(asker)("forget.done")

    def is_allowed(self, asker: Asker) -> bool:
        """By the access lists: who isn't gets no help, no buttons and no commands but the ones about privacy."""
        return self._gate.is_allowed(asker)

    def is_admin(self, asker: Asker) -> bool:
        """May stop and repeat other people's answers."""
        return self._gate.is_admin(asker)

    def was_asked(self, message: MessageKey) -> bool:
        """Is the message a question that was answered or is being answered? If it's edited, ask it again."""
        turn = self._memory.get(message)
        return bool(turn and turn.answers) or any(active.question == message for active in self._active.values())

    # What people read

    def texts(self, asker: Asker) -> Texts:
        """The sentences in the asker's language."""
        return Texts(choose_language(self._settings.language, asker.language))

    def help(self, asker: Asker, *, mention: str, commands: Sequence[tuple[str, str]]) -> str:
        """What the bot can do as it is set up: ``mention`` is how it is called, ``commands`` what it listens to."""
        texts = self.texts(asker)
        limits, pictures = self._gate.limits, self._settings.pictures
        lines = [texts("help.intro"), "", texts("help.send"), texts("help.group", mention=mention), texts("help.reply")]
        lines.append(texts("help.files", count=pictures.max_count, limit=texts.megabytes(pictures.max_bytes)))
        if limits.user_per_minute is not None:
            lines.append(texts("help.limits_minute", n=limits.user_per_minute))
        if limits.user_per_day is not None:
            lines.append(texts("help.limits_day", n=limits.user_per_day))
        if commands:
            lines += ["", texts("help.commands"), *(f"{name} – {what}" for name, what in commands)]
        return "\n".join(lines)

    def privacy(self, asker: Asker, *, forget: str) -> str:
        """What is kept and for how long; ``forget`` is the command that ends it."""
        texts = self.texts(asker)
        return texts("privacy", lifetime=texts.seconds(self._settings.pictures.lifetime_s), forget=forget)

    async def reply(self, asker: Asker, outlet: Outlet, text: str) -> None:
        """Send one short message of our own, but only one at a time for each person.

        Who floods a chat with questions or commands doesn't make the bot flood it, too.
        """
        owner = self._gate.user(asker)
        if owner not in self._replying_to:
            self._replying_to.add(owner)
            try:
                await self._say(outlet, text)
            finally:
                self._replying_to.discard(owner)

    async def _say(self, outlet: Outlet, text: str) -> None:
        """When the platform's limits allow."""
        while True:
            try:
                async with self.traffic.slot(outlet.traffic_key, Urgency.FIRST):
                    await outlet.send(Content(text, own=True))
            except TryLater as refusal:
                self.traffic.hold(outlet.traffic_key, refusal.seconds)
            except ChatGone:
                return
            else:
                return

    # A bot's life

    async def explain_unfinished(self, explain: Callable[[str, str | None, str], Awaitable[None]]) -> None:
        """Explain answers that an earlier life of this bot left unfinished.

        ``explain(place, message, text)`` writes ``text`` into the message, or sends a new one if it's None or gone. It
        may raise TryLater, and ChatGone if nobody can be told.
        """
        for pending in self.storage.unfinished_answers(self._platform):
            try:
                note = json.loads(self._pseudonyms.unseal(pending.place))
            except ValueError:
                self.storage.finish_answer(pending.id)  # sealed with a key that is gone
                continue
            text = Texts(note["language"])("restarted.note")
            while True:
                try:
                    async with self.traffic.slot(f"unfinished {pending.id}", Urgency.ANSWER):
                        await explain(note["place"], note["message"], text)
                except TryLater as refusal:
                    await asyncio.sleep(refusal.seconds)
                    continue
                except ChatGone:
                    pass
                break
            self.storage.finish_answer(pending.id)

    async def housekeeping(self) -> None:
        """Forget in time what is too old, also if nobody asks anything. Runs until cancelled."""
        while True:
            await asyncio.sleep(_PRUNE_EVERY_S)
            self._memory.prune()

    async def close(self) -> None:
        """End running answers with an explanation, as far as that is possible in a few seconds."""
        running = list(self._active.values())
        for active in running:
            self._stop(active, Texts(choose_language(self._settings.language, None))("restarted.note"))
        if running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await asyncio.gather(*(active.done.wait() for active in running))
            for active in running:
                # Whom even a few seconds don't reach is told at the next start.
                if active.whole is not None and not active.done.is_set():
                    active.whole.cancel()
        await self._server.aclose()
        self.storage.close()

    # The way itself

    async def _answer(
        self,
        question: Question,
        outlet: Outlet,
        collect: Callable[[], Awaitable[Collected]],
        *,
        reuse: tuple[MessageKey, ...] = (),
        temperature: float | None = None,
    ) -> None:
        """One answer from the first sign of life to the last edit. Nothing is awaited before it's marked as active."""
        owner = self._gate.user(question.asker)
        texts = self.texts(question.asker)
        display = Display(limit=outlet.limit, measure=outlet.measure, status=texts("progress.looking"))
        active = self._active[owner] = _Active(question.key, self._place(question.asker), display)
        writing: asyncio.Task[list[str]] | None = None
        try:
            number = self._gate.enter(question.asker)
            # Finished only when all is said, or can't be: whatever else ends this is explained at the next start.
            pending = self.storage.begin_answer(
                platform=self._platform, user=owner, place=self._sealed(question, texts, None)
            )

            def note_message(message: str) -> None:
                active.messages.add(outlet.key_of(message))
                self.storage.move_answer(pending, self._sealed(question, texts, message))

            if reuse:
                note_message(reuse[0].message)
            first = reuse[0].message if reuse else None
            spoken: list[str] = []
            active.work = asyncio.create_task(
                self._fill(display, question, texts, collect, spoken, number, temperature)
            )
            writing = asyncio.create_task(
                deliver(
                    display,
                    outlet,
                    self.traffic,
                    outlet.traffic_key,
                    first=first,
                    on_message=note_message,
                    sending=active.sending,
                )
            )
            await asyncio.wait({active.work, writing}, return_when=asyncio.FIRST_COMPLETED)
            if not display.finished:
                display.finish(active.note or texts("stopped.note"))
            messages = await writing
            if active.question == question.key:
                self._remember(active, outlet, "".join(spoken), messages)
            self.storage.finish_answer(pending)
            for old in reuse[1:]:
                await self._delete(outlet, old.message)
        except ChatGone:
            _log.info("the chat of user %s can't be written to any more", owner)
            self.storage.finish_answer(pending)
        finally:
            # Whatever fails here, such as the database: the person may ask again.
            for task in (active.work, writing):
                if task is not None:
                    task.cancel()
            if self._active.get(owner) is active:
                del self._active[owner]
            active.done.set()

    async def _fill(
        self,
        display: Display,
        question: Question,
        texts: Texts,
        collect: Callable[[], Awaitable[Collected]],
        spoken: list[str],
        number: int,
        temperature: float | None,
    ) -> None:
        """Ask the server and feed the display; every end but a cancellation finishes it."""
        try:
            collected = await collect()
            if not any(turn.pictures for turn in collected.turns):
                self._gate.withdraw(number)
                forgotten = texts("hint.forgotten" if collected.was_forgotten else "hint.nothing_usable")
                display.finish("\n".join([*collected.notes, forgotten]), buttons=Buttons.NONE)
                return
            display.spoiler = any(turn.spoiler for turn in collected.turns)
            self._memory.put(question.key, collected.turns[-1])
            self._memory.set_latest(self._place(question.asker), question.key)
            notes = await self._stream(display, collected, texts, spoken, temperature)
            if not display.has_text:
                notes.insert(0, texts("answer.empty"))
            display.finish("\n".join(notes))
        except MiniGPT4Error as error:
            self._gate.withdraw(number)
            if isinstance(error, RateLimited):  # only an operator can do more about it than wait
                _log.error(
                    "This bot's key has used up its share of the vision server, for another %s. Raise the key's "
                    "limits, or lower this bot's own: 'limits' in its settings.",
                    describe_wait(error.retry_after),
                )
            else:
                _log.warning("an answer failed: %s", error.code)
            display.finish(self._error_text(texts, error))
        except Exception:
            self._gate.withdraw(number)
            _log.exception("an answer failed")
            display.finish(texts("error.internal_error"))

    async def _stream(
        self,
        display: Display,
        collected: Collected,
        texts: Texts,
        spoken: list[str],
        temperature: float | None,
    ) -> list[str]:
        """The server's events onto the display; returns the notes for below the answer."""
        most = await self._collector.most_pictures()
        turns, dropped = keep_newest_pictures(merge_turns(collected.turns), most)
        notes = list(collected.notes)
        if dropped:
            notes.append(texts("left_out.older", most=most))
        # Beside the question itself.
        turns = keep_newest_words(turns, self._settings.answers.max_turns + 1)
        messages = to_messages(turns, self._settings.answers.system_prompt)
        options: dict[str, float] = {"max_tokens": self._settings.answers.max_tokens}
        chosen = self._settings.answers.temperature if temperature is None else temperature
        if chosen is not None:
            options["temperature"] = chosen
        # Closed at once when this task is cancelled: that is what frees the server's slot.
        async with contextlib.aclosing(self._server.answer(messages, **options)) as events:
            async for event in events:
                match event:
                    case TextDelta(text):
                        spoken.append(text)
                        display.feed(text)
                    case Queued(ahead, wait_s):
                        display.set_status(_waiting_text(texts, ahead, wait_s))
                    case Retrying(retry_in_s):
                        display.set_status(texts("progress.full", wait=texts.seconds(retry_in_s)))
                    case Completed(reason=reason, dropped_messages=dropped_messages):
                        if reason == "length":
                            notes.append(texts("answer.cut"))
                        if dropped_messages:
                            notes.append(texts("answer.dropped_messages"))
        return notes

    def _remember(self, active: _Active, outlet: Outlet, text: str, messages: Sequence[str]) -> None:
        """Answers are remembered under each of their messages; one without words still leads to its question."""
        asked = self._memory.get(active.question)
        if asked is None or not messages:
            return
        keys = tuple(outlet.key_of(message) for message in messages)
        answer = Turn("assistant", text.strip(), owner=active.place.owner, parent=active.question)
        for key in keys:
            self._memory.put(key, answer)
        self._memory.put(active.question, replace(asked, answers=keys))
        if active.goes_on:
            self._memory.set_latest(active.place, keys[-1])
        else:
            self._memory.reset(active.place)

    async def _shown_by(self, message: MessageKey) -> _Active | None:
        """The answer being given that the message belongs to."""

        def find() -> _Active | None:
            return next((active for active in self._active.values() if message in active.messages), None)

        if find() is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KNOWN_WITHIN_S):
                    for active in list(self._active.values()):
                        if active.question.chat == message.chat:
                            async with active.sending:
                                pass  # now its id is known
        return find()

    def _question_of(self, answer: MessageKey) -> tuple[MessageKey | None, Turn | None]:
        found = self._memory.get(answer)
        if found is None or found.role != "assistant" or found.parent is None:
            return None, None
        return found.parent, self._memory.get(found.parent)

    async def _delete(self, outlet: Outlet, message: str) -> None:
        with contextlib.suppress(TryLater, ChatGone):
            async with self.traffic.slot(outlet.traffic_key, Urgency.TIDY):
                await outlet.delete(message)

    def _stop_active(self, active: _Active | None, texts: Texts) -> str:
        if active is None or active.display.finished:
            return texts("stopped.nothing")
        self._stop(active, texts("stopped.note"))
        return texts("stopped.done")

    def _stop(self, active: _Active, note: str) -> None:
        active.note = note
        if active.work is not None:
            active.work.cancel()

    def _place(self, asker: Asker) -> Place:
        return Place(asker.chat, asker.channel, self._gate.user(asker))

    def _sealed(self, question: Question, texts: Texts, message: str | None) -> bytes:
        note = {"place": question.place, "message": message, "language": texts.language}
        return self._pseudonyms.seal(json.dumps(note))

    def _refusal_text(self, texts: Texts, refusal: Refusal) -> str:
        return texts(refusal.text, wait=texts.seconds(refusal.wait_s or 0))

    def _error_text(self, texts: Texts, error: MiniGPT4Error) -> str:
        wait = texts.seconds(error.retry_after) if isinstance(error, Overloaded) else ""
        name = f"error.{error.code}"
        return texts(name if texts.has(name) else "error.internal_error", wait=wait)


def _waiting_text(texts: Texts, ahead: int, wait_s: float | None) -> str:
    if ahead == 0:
        return texts("progress.next")
    if wait_s:
        return texts("progress.waiting_time", position=ahead, wait=texts.seconds(wait_s))
    return texts("progress.waiting", position=ahead)
