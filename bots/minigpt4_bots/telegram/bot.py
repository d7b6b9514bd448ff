"""The Telegram bot: updates in, questions to the core, buttons and commands. Knows who waits for what in which order.

Updates are taken one after another and none is waited for: whatever takes time runs as a task of its own, so the order
within a chat is kept and nobody waits for another's answer.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
from collections.abc import Awaitable, Coroutine
from typing import Any, ClassVar

import httpx
from telegram import Bot, BotCommand, CallbackQuery, Message, Update
from telegram.error import BadRequest, Conflict, NetworkError, TelegramError

from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.answer_service import Answering
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.settings import TelegramSettings
from minigpt4_bots.core.streaming import Buttons, Content, MessageGone
from minigpt4_bots.core.texts import Texts, languages
from minigpt4_bots.telegram.messages import Reader, asker_of, key_of, thread_of
from minigpt4_bots.telegram.targets import ChatOutlet, GuestOutlet, Spot

__all__ = ["TelegramBot"]

_log = logging.getLogger(__name__)

_COMMANDS = ("ask", "reset", "stop", "help", "privacy", "forget")
_DOWNLOAD_TIMEOUT_S = 30.0
_SURE_OF_ALBUMS_S = 5.0
"""An album's pictures are waited for at most this long after the first, however slowly they come."""


class TelegramBot:
    """One bot, as long as it runs. The library calls ``on_update`` and ``on_error``."""

    updates: ClassVar[tuple[str, ...]] = ("message", "edited_message", "callback_query", "guest_message")

    def __init__(self, answering: Answering, settings: TelegramSettings, bot: Bot) -> None:
        self._answering = answering
        self._settings = settings
        self._bot = bot
        self._client = httpx.AsyncClient(timeout=_DOWNLOAD_TIMEOUT_S, follow_redirects=False)
        self._reader = Reader(bot, self._client)
        self._albums: dict[tuple[int, str], _Album] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_drafts = settings.drafts
        self._draft_id = secrets.randbelow(2**30) + 1
        self._trouble = ""

    # Life

    async def start(self) -> None:
        """Explain what an earlier life left unfinished, tell Telegram the commands."""
        self._spawn(self._answering.housekeeping())
        self._spawn(self._answering.explain_unfinished(self._explain))
        self._spawn(self._publish_commands())
        _log.info("Running.")

    async def stop(self) -> None:
        """End running answers with an explanation, then everything else."""
        await self._answering.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def on_error(self, error: Exception) -> None:
        """Say each trouble once, in one line; the library goes on trying by itself."""
        if isinstance(error, Conflict):
            trouble = (
                "Another program receives this bot's updates with the same token (409 Conflict). Stop it, or give this "
                "bot a token of its own from @BotFather. Trying again."
            )
        elif isinstance(error, NetworkError) and not isinstance(error, BadRequest):
            trouble = "Telegram can't be reached. Trying again."
        else:
            _log.error("an update failed", exc_info=error)
            return
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("%s", trouble)

    # Updates

    async def on_update(self, update: Update) -> None:
        """Take in one update; returns at once."""
        if self._trouble:
            self._trouble = ""
            _log.info("Updates arrive again.")
        if update.callback_query is not None:
            self._on_button(update.callback_query)
        elif update.guest_message is not None:
            self._on_guest(update.guest_message)
        elif (message := update.message or update.edited_message) is not None:
            self._on_message(message, is_edited=update.edited_message is not None)

    def _on_message(self, message: Message, *, is_edited: bool) -> None:
        sender = message.from_user
        from_bot = sender is not None and sender.is_bot and message.sender_chat is None
        if from_bot or message.is_automatic_forward or not self._reader.has_content(message):
            return
        if is_edited:
            is_known = self._answering.was_asked(key_of(message))
            # An edit of anything else is a question only if it now says so itself.
            if is_known or (self._reader.is_meant([message]) and message.media_group_id is None):
                self._ask([message], is_edited=True)
        elif message.media_group_id is not None:
            self._on_album(message, message.media_group_id)
        elif self._reader.is_meant([message]):
            command = self._reader.command_of(message)
            if command is None or command.name == "ask":
                self._ask([message])
            else:
                self._on_command(command.name, message)

    def _on_album(self, message: Message, group: str) -> None:
        """Pictures of an album come as messages of their own: the question is complete when no more come."""
        loop = asyncio.get_running_loop()
        name = (message.chat.id, group)
        album = self._albums.setdefault(name, _Album(loop.time() + _SURE_OF_ALBUMS_S))
        album.messages.append(message)
        if album.timer is not None:
            album.timer.cancel()

        def complete() -> None:
            del self._albums[name]
            messages = sorted(album.messages, key=lambda one: one.message_id)
            if self._reader.is_meant(messages):
                self._ask(messages)

        album.timer = loop.call_at(min(album.latest, loop.time() + self._settings.album_wait_s), complete)

    def _ask(self, messages: list[Message], *, is_edited: bool = False) -> None:
        head = messages[0]
        question = self._reader.question_of(messages, place=self._spot_of(head).to_json(), is_edited=is_edited)
        outlet = self._outlet_for(head, self._answering.texts(question.asker))
        self._spawn(self._watching(outlet, self._answering.ask(question, outlet)))

    def _on_guest(self, message: Message) -> None:
        """A question from a chat that the bot isn't in: it gets exactly one answer."""
        if message.guest_query_id is None:
            return
        question = self._reader.question_of([message], place="guest")
        self._spawn(self._answering.ask(question, GuestOutlet(self._bot, message.guest_query_id)))

    def _on_command(self, name: str, message: Message) -> None:
        if name not in (*_COMMANDS, "start") and message.chat.type != "private":
            return  # some other bot's command
        asker = asker_of(message)
        texts = self._answering.texts(asker)
        outlet = self._outlet_for(message, texts)
        # Privacy is for everybody, also for those who may not ask.
        if name not in ("privacy", "forget", "stop") and not self._answering.is_allowed(asker):
            text = texts("refused.access")
        elif name in ("help", "start"):
            commands = [(f"/{command}", texts(f"command.{command}")) for command in _COMMANDS]
            text = self._answering.help(asker, mention=f"@{self._bot.username}", commands=commands)
        elif name == "privacy":
            text = self._answering.privacy(asker, forget="/forget")
        elif name == "forget":
            text = self._answering.forget(asker)
        elif name == "reset":
            text = self._answering.reset(asker)
        elif name == "stop":
            text = self._answering.stop(asker)
        else:
            text = texts("hint.no_picture")
        self._spawn(self._answering.reply(asker, outlet, text))

    def _on_button(self, query: CallbackQuery) -> None:
        message = query.message
        if message is None or query.data not in (Buttons.STOP.value, Buttons.AGAIN.value):
            self._spawn(self._acknowledge(query, None))
            return
        key = MessageKey(str(message.chat.id), str(message.message_id))
        if not isinstance(message, Message):
            # Too old for Telegram to show it to us.
            language = Texts() if query.from_user.language_code is None else self._texts_for(query)
            self._spawn(self._acknowledge(query, language("again.forgotten")))
            return
        asker = asker_of(message, query.from_user)
        if query.data == Buttons.STOP.value:
            self._spawn(self._stop_shown(query, asker, key))
        else:
            self._spawn(self._regenerate(query, message, key))

    async def _stop_shown(self, query: CallbackQuery, asker: Asker, key: MessageKey) -> None:
        await self._acknowledge(query, await self._answering.stop_shown(asker, key))

    async def _regenerate(self, query: CallbackQuery, message: Message, key: MessageKey) -> None:
        asker = asker_of(message, query.from_user)
        why_not = await self._answering.why_not_regenerate(asker, key)
        await self._acknowledge(query, why_not)
        if why_not is None:
            outlet = self._outlet_for(message, self._answering.texts(asker), replies=False)
            place = Spot(message.chat.id, thread_of(message)).to_json()
            await self._watching(outlet, self._answering.regenerate(asker, key, outlet, place=place))

    async def _acknowledge(self, query: CallbackQuery, text: str | None) -> None:
        """Stop the button's waiting sign. A query that is too old can't be answered; that harms nobody."""
        with contextlib.suppress(TelegramError):
            await query.answer(text)

    # Places

    def _texts_for(self, query: CallbackQuery) -> Texts:
        language = (query.from_user.language_code or "").split("-")[0]
        return Texts(language if language in languages() else "en")

    def _spot_of(self, message: Message) -> Spot:
        # In a private chat it's clear what is answered; among others it must be shown.
        is_private = message.chat.type == "private"
        return Spot(message.chat.id, thread_of(message), None if is_private else message.message_id)

    def _outlet_for(self, message: Message, texts: Texts, *, replies: bool = True) -> ChatOutlet:
        spot = self._spot_of(message)
        if not replies:
            spot = Spot(spot.chat, spot.thread)
        self._draft_id = (self._draft_id + 1000) % 2**31 or 1  # an answer's pages count up from here
        is_private = message.chat.type == "private"
        return ChatOutlet(self._bot, spot, texts, previews=is_private and self._has_drafts, draft_id=self._draft_id)

    async def _watching(self, outlet: ChatOutlet, answer: Awaitable[object]) -> None:
        """Remember for all chats that the server has no drafts, once one answer met that."""
        await answer
        if self._has_drafts and not outlet.knows_drafts:
            self._has_drafts = False
            _log.info("This Bot API server has no drafts: answers are streamed by edits.")

    async def _explain(self, place: str, message: str | None, text: str) -> None:
        spot = Spot.from_json(place)
        if spot is None:
            return  # a guest's question: there is no second chance to answer it
        outlet = ChatOutlet(self._bot, spot, Texts(), previews=False, draft_id=1)
        if message is not None:
            try:
                await outlet.edit(message, Content(text, own=True))
            except MessageGone:
                pass
            else:
                return
        await outlet.send(Content(text, own=True))

    async def _publish_commands(self) -> None:
        """Tell Telegram the commands in all languages, if they are others than last time."""
        lists = {
            language: [BotCommand(name, Texts(language)(f"command.{name}")) for name in _COMMANDS]
            for language in languages()
        }
        told = json.dumps({language: [one.to_dict() for one in commands] for language, commands in lists.items()})
        digest = hashlib.sha256(f"{self._bot.id} {told}".encode()).hexdigest()
        if self._answering.storage.fact("telegram commands") == digest:
            return
        try:
            for language, commands in lists.items():
                # English is for everybody whose language isn't there.
                await self._bot.set_my_commands(commands, language_code=None if language == "en" else language)
        except TelegramError:
            _log.warning("The list of commands couldn't be published; the next start tries again.")
        else:
            self._answering.storage.remember_fact("telegram commands", digest)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task failed", exc_info=error)


class _Album:
    """The messages of an album so far."""

    def __init__(self, latest: float) -> None:
        self.latest = latest
        self.messages: list[Message] = []
        self.timer: asyncio.TimerHandle | None = None
