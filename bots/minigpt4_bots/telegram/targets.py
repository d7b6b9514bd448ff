"""Where answers appear on Telegram, and what the Bot API's errors mean for them."""

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

__all__ = ["OVERALL", "ChatTarget", "GuestTarget", "MessageLocation", "rates_for"]

_log = logging.getLogger(__name__)

# Slightly below Telegram's limits (30/s, 1/s per chat, 20/min per group), as clocks and networks jitter.
OVERALL = (Rate(28, 1.05),)
_ONE_CHAT = (Rate(1, 1.05),)
_GROUP = (Rate(1, 1.05), Rate(18, 61.0), Rate(1, 3.2, progress_only=True))
_RETRY_S = 2.0
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)
_LIMIT = 4096
_EMPTY = "…"
_Sent = TypeVar("_Sent")


def rates_for(chat: str) -> tuple[Rate, ...]:
    """Telegram's rate limits for a chat by its id; groups and channels have negative ids."""
    return _GROUP if chat.startswith("-") else _ONE_CHAT


@dataclass(frozen=True)
class MessageLocation:
    """Where an answer is shown, as it is stored for the next start: a chat, a topic in it, a message to reply to."""

    chat: int
    topic: int | None = None
    reply_to: int | None = None

    def to_json(self) -> str:
        """For ``Question.location``."""
        return json.dumps([self.chat, self.topic, self.reply_to])

    @classmethod
    def from_json(cls, text: str) -> "MessageLocation | None":
        """Read what ``to_json`` returned; None for anything else."""
        try:
            chat, topic, reply_to = json.loads(text)
        except ValueError:
            return None
        return cls(chat, topic, reply_to)


@contextmanager
def _platform_errors() -> Iterator[None]:
    """Translate Telegram's errors into the core's.

    Raises:
        TryLater, MessageGone, ChatGone
    """
    try:
        yield
    except RetryAfter as error:
        after = error.retry_after
        raise TryLater(0.1 + (after if isinstance(after, int) else after.total_seconds())) from None
    except BadRequest as error:
        reason = error.message.lower()
        if "message to edit not found" in reason or "message_id_invalid" in reason:
            raise MessageGone from None
        # Other bad requests don't succeed on retry.
        _log.warning("Telegram refused: %s", reason[:100])
        raise ChatGone from None
    except (TimedOut, NetworkError):
        raise TryLater(_RETRY_S) from None
    except TelegramError as error:
        _log.info("can't write to a chat: %s", type(error).__name__)
        raise ChatGone from None


class ChatTarget:
    """One answer in a chat. ``previews`` streams it as drafts, which private chats offer."""

    limit = _LIMIT

    def __init__(self, bot: Bot, location: MessageLocation, texts: Texts, *, previews: bool, draft_id: int) -> None:
        self._bot = bot
        self._location = location
        self._texts = texts
        self._draft_id = draft_id
        self._has_replied = False
        self._write = _TextWriter()
        self.previews = previews
        self.supports_drafts = True
        """False once the server turned out to be too old for drafts in any chat."""
        self.rate_key = str(location.chat)

    def key_for(self, message: str) -> MessageKey:
        """Replies refer to the message in the same chat."""
        return MessageKey(str(self._location.chat), message)

    def measure(self, text: str, spoiler: bool) -> int:
        """UTF-16 units after parsing."""
        return telegram_length(text, spoiler=spoiler)

    async def send(self, content: Content) -> str:
        """Send a message; the first one replies to the question."""
        reply = None
        if self._location.reply_to is not None and not self._has_replied:
            reply = ReplyParameters(self._location.reply_to, allow_sending_without_reply=True)

        async def send(text: dict[str, Any]) -> str:
            sent = await self._bot.send_message(
                self._location.chat,
                **text,
                message_thread_id=self._location.topic,
                reply_parameters=reply,
                reply_markup=self._keyboard(content.buttons),
                link_preview_options=_NO_PREVIEW,
            )
            return str(sent.message_id)

        with _platform_errors():
            try:
                message = await self._write(send, content)
            except ChatMigrated as moved:
                # The group became a supergroup and has a new id.
                self._location = MessageLocation(moved.new_chat_id, self._location.topic)
                raise TryLater(0) from None
        self._has_replied = True
        self._draft_id += 1
        return message

    async def edit(self, message: str, content: Content) -> None:
        """Replace text and buttons; no error if they are the same."""

        async def edit(text: dict[str, Any]) -> None:
            await self._bot.edit_message_text(
                **text,
                chat_id=self._location.chat,
                message_id=int(message),
                reply_markup=self._keyboard(content.buttons),
                link_preview_options=_NO_PREVIEW,
            )

        try:
            with _platform_errors():
                try:
                    await self._write(edit, content)
                except BadRequest as error:
                    if "message is not modified" not in error.message.lower():
                        raise
        except ChatGone:
            # After a refused edit a new message may still succeed.
            raise MessageGone(remains=True) from None

    async def delete(self, message: str) -> None:
        """Delete a message; no error if it is deleted already or too old."""
        with _platform_errors(), suppress(BadRequest):
            await self._bot.delete_message(self._location.chat, int(message))

    async def preview(self, content: Content) -> None:
        """Show growing text as a draft; if the server refuses it, this answer continues by edits."""

        async def draft(text: dict[str, Any]) -> None:
            await self._bot.send_message_draft(
                self._location.chat, self._draft_id, **text, message_thread_id=self._location.topic
            )

        try:
            await self._write(draft, content)
        except InvalidToken:
            # A server too old for drafts responds with 404, which the library reports as a wrong token.
            self.previews = False
            self.supports_drafts = False
        except BadRequest:
            self.previews = False  # not in this chat, or not for this text
        except TimedOut:
            pass  # the next draft includes this text
        except (RetryAfter, Forbidden):
            with _platform_errors():
                raise
        except TelegramError:
            raise TryLater(_RETRY_S) from None

    def _keyboard(self, buttons: Buttons) -> InlineKeyboardMarkup | None:
        if buttons is Buttons.NONE:
            return None
        label = self._texts(f"button.{buttons.value}")
        return InlineKeyboardMarkup.from_button(InlineKeyboardButton(label, callback_data=buttons.value))


class GuestTarget:
    """The only answer to a question from a chat that the bot isn't in: sent once, when it is complete."""

    limit = _LIMIT
    previews = False

    def __init__(self, bot: Bot, query: str) -> None:
        self._bot = bot
        self._query = query
        self._is_answered = False
        self._write = _TextWriter()
        self.rate_key = f"guest {query}"

    def key_for(self, message: str) -> MessageKey:
        """A key of its own: replies to guest answers don't refer to them."""
        return MessageKey(f"guest {self._query}", message)

    def measure(self, text: str, spoiler: bool) -> int:
        """UTF-16 units after parsing."""
        return telegram_length(text, spoiler=spoiler)

    async def send(self, content: Content) -> str:
        """Send the first page once it is complete; growing text isn't shown."""
        await self.edit("answer", content)
        return "answer"

    async def edit(self, message: str, content: Content) -> None:
        """Like ``send``."""
        if content.buttons is Buttons.STOP or self._is_answered:
            return

        async def answer(text: dict[str, Any]) -> None:
            message = InputTextMessageContent(
                text["text"],
                parse_mode=text.get("parse_mode"),
                entities=text.get("entities"),
                link_preview_options=_NO_PREVIEW,
            )
            await self._bot.answer_guest_query(self._query, InlineQueryResultArticle("answer", "…", message))

        with _platform_errors():
            await self._write(answer, content)
        self._is_answered = True

    async def delete(self, message: str) -> None:
        """Guest answers can't be deleted."""

    async def preview(self, content: Content) -> None:
        """Growing text isn't shown."""


class _TextWriter:
    """Writes HTML, and plain text after Telegram refused the HTML."""

    def __init__(self) -> None:
        self._plain = False

    async def __call__(self, write: Callable[[dict[str, Any]], Awaitable[_Sent]], content: Content) -> _Sent:
        """Write once.

        Raises:
            TryLater: the markup was refused. The attempt counts as a write, so the plain text waits for its turn.
        """
        if content.own:
            return await write({"text": content.text})
        if not telegram_plain(content.text).strip():
            return await write({"text": _EMPTY})
        if self._plain:
            return await write(_plain_text(content))
        try:
            return await write({"text": telegram_html(content.text, spoiler=content.spoiler), "parse_mode": "HTML"})
        except BadRequest as error:
            reason = error.message.lower()
            if "can't parse entities" not in reason and "too long" not in reason:
                raise
        self._plain = True
        raise TryLater(_ONE_CHAT[0].per_s)


def _plain_text(content: Content) -> dict[str, Any]:
    plain = telegram_plain(content.text)[:_LIMIT]
    while utf16_length(plain) > _LIMIT:
        plain = plain[:-1]
    entities = [MessageEntity(MessageEntity.SPOILER, 0, utf16_length(plain))] if content.spoiler else None
    return {"text": plain, "entities": entities}
