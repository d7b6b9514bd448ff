"""Places in Telegram chats to answer in: how content is shown there, and what Telegram's refusals mean.

Knows the Bot API's methods and errors; nothing of questions or servers.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from telegram import (
    Bot,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    InlineQueryResultArticle,
    InputTextMessageContent,
    LinkPreviewOptions,
    MessageEntity,
    ReplyParameters,
)
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
    TimedOut,
)

from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.markup import utf16_length
from minigpt4_bots.core.send_queue import Rate
from minigpt4_bots.core.streaming import Buttons, ChatGone, Content, MessageGone, TryLater
from minigpt4_bots.core.texts import Texts
from minigpt4_bots.telegram.markup import telegram_html, telegram_length, telegram_plain

__all__ = ["OVERALL", "ChatOutlet", "GuestOutlet", "Spot", "rates_of"]

_log = logging.getLogger(__name__)

# A little below what Telegram allows (30/s, 1/s per chat, 20/min per group): clocks and networks jitter.
OVERALL = (Rate(28, 1.05),)
_ONE_CHAT = (Rate(1, 1.05),)
_GROUP = (Rate(1, 1.05), Rate(18, 61.0), Rate(1, 3.2, progress_only=True))
_RETRY_S = 2.0
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)
_LIMIT = 4096
_EMPTY = "…"
_Sent = TypeVar("_Sent")


def rates_of(chat: str) -> tuple[Rate, ...]:
    """Telegram's limits for a chat by its id; groups and channels have negative ids."""
    return _GROUP if chat.startswith("-") else _ONE_CHAT


@dataclass(frozen=True)
class Spot:
    """Where in Telegram: a chat, a topic in it, a message to reply to."""

    chat: int
    thread: int | None = None
    reply_to: int | None = None

    def to_json(self) -> str:
        """For the storage, which seals it."""
        return json.dumps([self.chat, self.thread, self.reply_to])

    @classmethod
    def from_json(cls, text: str) -> "Spot | None":
        """What ``to_json`` made; None for anything else."""
        try:
            chat, thread, reply_to = json.loads(text)
        except ValueError:
            return None
        return cls(chat, thread, reply_to)


@contextmanager
def _translated() -> Iterator[None]:
    """Telegram's errors as the core's."""
    try:
        yield
    except RetryAfter as error:
        after = error.retry_after
        raise TryLater(0.1 + (after if isinstance(after, int) else after.total_seconds())) from None
    except BadRequest as error:
        reason = error.message.lower()
        if "message to edit not found" in reason or "message_id_invalid" in reason:
            raise MessageGone from None
        # What else Telegram finds wrong with a chat won't be right in a second.
        _log.warning("Telegram refused: %s", reason[:100])
        raise ChatGone from None
    except (TimedOut, NetworkError):
        raise TryLater(_RETRY_S) from None
    except TelegramError as error:
        _log.info("a chat can't be written to: %s", type(error).__name__)
        raise ChatGone from None


class ChatOutlet:
    """One answer's place in a chat. ``previews``: stream by drafts, which private chats offer."""

    limit = _LIMIT

    def __init__(self, bot: Bot, spot: Spot, texts: Texts, *, previews: bool, draft_id: int) -> None:
        self._bot = bot
        self._spot = spot
        self._texts = texts
        self._draft_id = draft_id
        self._has_replied = False
        self._write = _Writing()
        self.previews = previews
        self.knows_drafts = True
        """False once the server has shown that it is too old for drafts, in whatever chat."""
        self.traffic_key = str(spot.chat)

    def key_of(self, message: str) -> MessageKey:
        """The key under which replies to a message of this outlet will come."""
        return MessageKey(str(self._spot.chat), message)

    def measure(self, text: str, spoiler: bool) -> int:
        """UTF-16 units after parsing."""
        return telegram_length(text, spoiler=spoiler)

    async def send(self, content: Content) -> str:
        """A new message; the first one replies to the question."""
        reply = None
        if self._spot.reply_to is not None and not self._has_replied:
            reply = ReplyParameters(self._spot.reply_to, allow_sending_without_reply=True)

        async def send(text: dict[str, Any]) -> str:
            sent = await self._bot.send_message(
                self._spot.chat,
                **text,
                message_thread_id=self._spot.thread,
                reply_parameters=reply,
                reply_markup=self._keyboard(content.buttons),
                link_preview_options=_NO_PREVIEW,
            )
            return str(sent.message_id)

        with _translated():
            try:
                message = await self._write(send, content)
            except ChatMigrated as moved:
                # The group became a supergroup: it goes on under a new id.
                self._spot = Spot(moved.new_chat_id, self._spot.thread)
                raise TryLater(0) from None
        self._has_replied = True
        self._draft_id += 1
        return message

    async def edit(self, message: str, content: Content) -> None:
        """Replace what a message shows; showing it already is fine."""

        async def edit(text: dict[str, Any]) -> None:
            await self._bot.edit_message_text(
                **text,
                chat_id=self._spot.chat,
                message_id=int(message),
                reply_markup=self._keyboard(content.buttons),
                link_preview_options=_NO_PREVIEW,
            )

        try:
            with _translated():
                try:
                    await self._write(edit, content)
                except BadRequest as error:
                    if "message is not modified" not in error.message.lower():
                        raise
        except ChatGone:
            # An edit that is refused says nothing about a new message.
            raise MessageGone(remains=True) from None

    async def delete(self, message: str) -> None:
        """Remove a message; one that is gone already, or too old to be removed, is fine."""
        with _translated(), suppress(BadRequest):
            await self._bot.delete_message(self._spot.chat, int(message))

    async def preview(self, content: Content) -> None:
        """Show growing text as a draft; if the server refuses it, this answer goes on by edits."""

        async def draft(text: dict[str, Any]) -> None:
            await self._bot.send_message_draft(
                self._spot.chat, self._draft_id, **text, message_thread_id=self._spot.thread
            )

        try:
            await self._write(draft, content)
        except InvalidToken:
            # An older server answers 404 to what it doesn't know, which the library takes for a wrong token.
            self.previews, self.knows_drafts = False, False
        except BadRequest:
            self.previews = False  # something about this chat or this text
        except TimedOut:
            pass  # the next one brings this text, too
        except (RetryAfter, Forbidden):
            with _translated():
                raise
        except TelegramError:
            raise TryLater(_RETRY_S) from None

    def _keyboard(self, buttons: Buttons) -> InlineKeyboardMarkup | None:
        if buttons is Buttons.NONE:
            return None
        label = self._texts(f"button.{buttons.value}")
        return InlineKeyboardMarkup.from_button(InlineKeyboardButton(label, callback_data=buttons.value))


class GuestOutlet:
    """The one answer to a question from a chat that the bot isn't in: written once, when it is complete."""

    limit = _LIMIT
    previews = False

    def __init__(self, bot: Bot, query: str) -> None:
        self._bot = bot
        self._query = query
        self._is_answered = False
        self._write = _Writing()
        self.traffic_key = f"guest {query}"

    def key_of(self, message: str) -> MessageKey:
        """Replies to guest answers don't come with a key: there is nothing to go on from."""
        return MessageKey(f"guest {self._query}", message)

    def measure(self, text: str, spoiler: bool) -> int:
        """UTF-16 units after parsing."""
        return telegram_length(text, spoiler=spoiler)

    async def send(self, content: Content) -> str:
        """Answer if this is the complete first page; what is still growing isn't shown."""
        await self.edit("answer", content)
        return "answer"

    async def edit(self, message: str, content: Content) -> None:
        """The same."""
        if content.buttons is Buttons.STOP or self._is_answered:
            return

        async def answer(text: dict[str, Any]) -> None:
            words = InputTextMessageContent(
                text["text"],
                parse_mode=text.get("parse_mode"),
                entities=text.get("entities"),
                link_preview_options=_NO_PREVIEW,
            )
            await self._bot.answer_guest_query(self._query, InlineQueryResultArticle("answer", "…", words))

        with _translated():
            await self._write(answer, content)
        self._is_answered = True

    async def delete(self, message: str) -> None:
        """There is nothing to remove."""

    async def preview(self, content: Content) -> None:
        """Nothing is shown before the end."""


class _Writing:
    """How text goes out: with markup, and without it from when Telegram couldn't parse what we made."""

    def __init__(self) -> None:
        self._plain = False

    async def __call__(self, write: Callable[[dict[str, Any]], Awaitable[_Sent]], content: Content) -> _Sent:
        """Write once.

        Raises:
            TryLater: the markup was refused. Even that counts as a write, so the plain text must wait for its turn.
        """
        if content.own:
            return await write({"text": content.text})
        if not telegram_plain(content.text).strip():
            return await write({"text": _EMPTY})
        if self._plain:
            return await write(_plain_words(content))
        try:
            return await write({"text": telegram_html(content.text, spoiler=content.spoiler), "parse_mode": "HTML"})
        except BadRequest as error:
            reason = error.message.lower()
            if "can't parse entities" not in reason and "too long" not in reason:
                raise
        self._plain = True
        raise TryLater(_ONE_CHAT[0].per_s)


def _plain_words(content: Content) -> dict[str, Any]:
    plain = telegram_plain(content.text)[:_LIMIT]
    while utf16_length(plain) > _LIMIT:
        plain = plain[:-1]
    under = [MessageEntity(MessageEntity.SPOILER, 0, utf16_length(plain))] if content.spoiler else None
    return {"text": plain, "entities": under}
