"""The Telegram bot: turns updates into questions, commands and button presses.

Updates are handled in order and never awaited: anything that takes time runs in a task of its own, so the order within
a chat is kept and no one waits for another person's answer.
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

from minigpt4_bots.core.access import DenialReason, Requester
from minigpt4_bots.core.answer_service import AnswerService
from minigpt4_bots.core.commands import COMMANDS, CommandContext, find_command, run_command
from minigpt4_bots.core.settings import TelegramSettings
from minigpt4_bots.core.streaming import Buttons, Content, MessageGone
from minigpt4_bots.core.texts import Texts, languages
from minigpt4_bots.telegram.messages import MessageReader, message_key, requester_from, topic_id
from minigpt4_bots.telegram.targets import ChatTarget, GuestTarget, MessageLocation
from minigpt4_serve.client.connection import make_http_client

__all__ = ["TelegramBot"]

_log = logging.getLogger(__name__)

_FACT = "telegram commands"
_GUEST = "guest"
"""The location of a question whose chat can't be written to after a restart."""
_DOWNLOAD_TIMEOUT_S = 30.0
_SEEN_UPDATES = 2000
_ALBUM_WITHIN_S = 5.0
"""The longest wait for the messages of an album, from the first one on."""


class TelegramBot:
    """The running bot. The library calls ``on_update`` and ``on_error``."""

    updates: ClassVar[tuple[str, ...]] = ("message", "edited_message", "callback_query", "guest_message")

    def __init__(self, service: AnswerService, settings: TelegramSettings, bot: Bot) -> None:
        self._service = service
        self._settings = settings
        self._bot = bot
        self._http = make_http_client(
            httpx.AsyncClient, settings.file_url, timeout=_DOWNLOAD_TIMEOUT_S, follow_redirects=False
        )
        self._reader = MessageReader(bot, self._http)
        self._albums: dict[tuple[int, str], _Album] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_drafts = settings.drafts
        self._draft_id = secrets.randbelow(2**30) + 1
        self._last_error = ""
        self._seen: dict[int, None] = {}
        """Ids of the last updates, the oldest first."""

    async def start(self) -> None:
        """Explain unfinished answers and publish the commands, in the background."""
        self._spawn(self._service.run_housekeeping())
        self._spawn(self._service.explain_unfinished(self._explain))
        self._spawn(self._publish_commands())
        _log.info("Running.")

    async def stop(self) -> None:
        """Stop running answers with an explanation, then everything else."""
        await self._service.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    def on_error(self, error: Exception) -> None:
        """Log a connection error once, in one line; the library retries by itself."""
        if isinstance(error, Conflict):
            text = (
                "Another program receives this bot's updates with the same token (409 Conflict). Stop it, or give this "
                "bot a token of its own from @BotFather. Trying again."
            )
        elif isinstance(error, NetworkError) and not isinstance(error, BadRequest):
            text = "Telegram can't be reached. Trying again."
        else:
            _log.error("an update failed", exc_info=error)
            return
        if text != self._last_error:
            self._last_error = text
            _log.error("%s", text)

    # Updates

    async def on_update(self, update: Update) -> None:
        """Handle one update; returns at once. Telegram repeats what wasn't acknowledged in time."""
        if update.update_id in self._seen:
            return
        self._seen[update.update_id] = None
        if len(self._seen) > _SEEN_UPDATES:
            del self._seen[next(iter(self._seen))]
        if self._last_error:
            self._last_error = ""
            _log.info("Updates arrive again.")
        if update.callback_query is not None:
            self._on_button(update.callback_query)
        elif update.guest_message is not None:
            self._on_guest(update.guest_message)
        elif (message := update.message or update.edited_message) is not None:
            self._on_message(message, is_edited=update.edited_message is not None)

    def _on_message(self, message: Message, *, is_edited: bool) -> None:
        sender = message.from_user
        is_from_bot = sender is not None and sender.is_bot and message.sender_chat is None
        if is_from_bot or message.is_automatic_forward or not self._reader.has_content(message):
            return
        if is_edited:
            was_asked = self._service.was_asked(message_key(message))
            # Other edited messages are questions only if the edit addresses the bot.
            if was_asked or (self._reader.is_addressed([message]) and message.media_group_id is None):
                self._ask([message], is_edited=True)
        elif message.media_group_id is not None:
            self._on_album(message, message.media_group_id)
        elif self._reader.is_addressed([message]):
            command = self._reader.parse_command(message)
            if command is None or command.name == "ask":
                self._ask([message])
            else:
                self._on_command(command.name, message)

    def _on_album(self, message: Message, group: str) -> None:
        """Collect an album, whose images arrive as separate messages; it is complete when no more arrive."""
        loop = asyncio.get_running_loop()
        key = (message.chat.id, group)
        album = self._albums.setdefault(key, _Album(loop.time() + _ALBUM_WITHIN_S))
        album.messages.append(message)
        if album.timer is not None:
            album.timer.cancel()

        def complete() -> None:
            del self._albums[key]
            messages = sorted(album.messages, key=lambda one: one.message_id)
            if self._reader.is_addressed(messages):
                self._ask(messages)

        album.timer = loop.call_at(min(album.deadline, loop.time() + self._settings.album_wait_s), complete)

    def _ask(self, messages: list[Message], *, is_edited: bool = False) -> None:
        first = messages[0]
        location = self._location(first)
        question = self._reader.read_question(messages, location=location.to_json(), is_edited=is_edited)
        target = self._target(first, location, self._service.texts(question.requester))
        self._spawn(self._check_drafts(target, self._service.ask(question, target)))

    def _on_guest(self, message: Message) -> None:
        """Answer a question from a chat that the bot isn't in; such a question takes exactly one answer."""
        if message.guest_query_id is None:
            return
        question = self._reader.read_question([message], location=_GUEST)
        self._spawn(self._service.ask(question, GuestTarget(self._bot, message.guest_query_id)))

    def _on_command(self, name: str, message: Message) -> None:
        command = find_command(name)
        if command is None and message.chat.type != "private":
            return  # a command of another bot
        requester = requester_from(message)
        context = CommandContext(
            self._service,
            requester,
            mention=f"@{self._bot.username}",
            format_command=lambda command_name: f"/{command_name}",
        )
        target = self._target(message, self._location(message), context.texts)
        self._spawn(self._service.reply(requester, target, run_command(command, context)))

    def _on_button(self, query: CallbackQuery) -> None:
        message = query.message
        if message is None or query.data not in (Buttons.STOP.value, Buttons.REGENERATE.value):
            self._spawn(self._acknowledge(query, None))
            return
        if not isinstance(message, Message):
            # Telegram doesn't show the bot a message this old.
            texts = self._service.texts_in(query.from_user.language_code)
            self._spawn(self._acknowledge(query, texts(DenialReason.EXPIRED)))
            return
        requester = requester_from(message, query.from_user)
        if query.data == Buttons.STOP.value:
            self._spawn(self._stop_message(query, requester, message))
        else:
            self._spawn(self._regenerate(query, requester, message))

    async def _stop_message(self, query: CallbackQuery, requester: Requester, message: Message) -> None:
        outcome = await self._service.stop_message(requester, message_key(message))
        await self._acknowledge(query, self._service.texts(requester)(outcome))

    async def _regenerate(self, query: CallbackQuery, requester: Requester, message: Message) -> None:
        key = message_key(message)
        denial = await self._service.check_regenerate(requester, key)
        if denial is not None:
            await self._acknowledge(query, self._service.describe_denial(requester, denial))
            return
        await self._acknowledge(query, None)
        location = MessageLocation(message.chat.id, topic_id(message))
        target = self._target(message, location, self._service.texts(requester))
        answer = self._service.regenerate(requester, key, target, location=location.to_json())
        await self._check_drafts(target, answer)

    async def _acknowledge(self, query: CallbackQuery, text: str | None) -> None:
        """End the button's progress indicator; an expired query needs no answer."""
        with contextlib.suppress(TelegramError):
            await query.answer(text)

    # Targets

    def _location(self, message: Message) -> MessageLocation:
        # In a private chat it is clear what is answered; in groups the answer replies to the question.
        is_private = message.chat.type == "private"
        return MessageLocation(message.chat.id, topic_id(message), None if is_private else message.message_id)

    def _target(self, message: Message, location: MessageLocation, texts: Texts) -> ChatTarget:
        self._draft_id = (self._draft_id + 1000) % 2**31 or 1  # the pages of an answer count up from here
        previews = message.chat.type == "private" and self._has_drafts
        return ChatTarget(self._bot, location, texts, previews=previews, draft_id=self._draft_id)

    async def _check_drafts(self, target: ChatTarget, answer: Awaitable[object]) -> None:
        """Stop using drafts in all chats once an answer shows that the server doesn't support them."""
        await answer
        if self._has_drafts and not target.supports_drafts:
            self._has_drafts = False
            _log.info("This Bot API server has no drafts: answers are streamed by edits.")

    async def _explain(self, location_json: str, message: str | None, text: str) -> None:
        location = MessageLocation.from_json(location_json)
        if location is None:
            return  # a guest's question
        target = ChatTarget(self._bot, location, Texts(), previews=False, draft_id=1)
        if message is not None:
            try:
                await target.edit(message, Content(text, own=True))
            except MessageGone:
                pass
            else:
                return
        await target.send(Content(text, own=True))

    async def _publish_commands(self) -> None:
        """Publish the commands in all languages if they differ from the last time."""
        lists = {
            language: [BotCommand(command.name, Texts(language)(command.description)) for command in COMMANDS]
            for language in languages()
        }
        content = json.dumps({language: [one.to_dict() for one in commands] for language, commands in lists.items()})
        digest = hashlib.sha256(f"{self._bot.id} {content}".encode()).hexdigest()
        if await self._service.storage.fact(_FACT) == digest:
            return
        try:
            for language, commands in lists.items():
                # English is the default for all other languages.
                await self._bot.set_my_commands(commands, language_code=None if language == "en" else language)
        except TelegramError:
            _log.warning("The list of commands couldn't be published; the next start tries again.")
        else:
            self._service.storage.store_fact(_FACT, digest)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task failed", exc_info=error)


class _Album:
    """The messages of an album so far."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.messages: list[Message] = []
        self.timer: asyncio.TimerHandle | None = None
