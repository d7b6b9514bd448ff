"""Telegram's messages as questions: text, images, and what they reply to.

Files are downloaded here, up to a size limit, from URLs that contain the bot's token. Neither the URLs nor exceptions
that quote them leave this module.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from telegram import Bot, ExternalReplyInfo, Message, User
from telegram.error import BadRequest, TelegramError

from minigpt4_bots.core.access import Requester
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, DownloadFailed, FileTooLarge, Question, QuotedMessage, Unusable
from minigpt4_serve.images import IMAGE_SUFFIXES

__all__ = ["Command", "MessageReader", "message_key", "requester_from", "topic_id"]

_COMMAND = re.compile(r"/(?P<name>[A-Za-z0-9_]{1,32})(?:@(?P<bot>\w+))?(?:\s+|$)(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """``/name rest``, addressed to this bot."""

    name: str
    rest: str


def message_key(message: Message) -> MessageKey:
    """The message's key in conversations."""
    return MessageKey(str(message.chat.id), str(message.message_id))


def topic_id(message: Message) -> int | None:
    """The forum topic; None outside of topics, also for threads of replies."""
    return message.message_thread_id if message.is_topic_message else None


def _channel(message: Message) -> str:
    """``chat/topic`` within topics, else empty."""
    topic = topic_id(message)
    return f"{message.chat.id}/{topic}" if topic is not None else ""


def requester_from(message: Message, user: User | None = None) -> Requester:
    """The author of a message, or the ``user`` who pressed a button below it."""
    # Anonymous administrators and channels write as a chat.
    sender_chat = None if user is not None else message.sender_chat
    person = user or message.from_user
    identity = message.chat.id
    if sender_chat is not None:
        identity = sender_chat.id
    elif person is not None:
        identity = person.id
    return Requester(
        platform="telegram",
        user=str(identity),
        chat=str(message.chat.id),
        channel=_channel(message),
        private=message.chat.type == "private",
        language=person.language_code if person is not None else None,
    )


class MessageReader:
    """Reads messages for one bot."""

    def __init__(self, bot: Bot, http: httpx.AsyncClient) -> None:
        self._bot = bot
        self._http = http

    def parse_command(self, message: Message) -> Command | None:
        """The command that begins the message, unless it names another bot."""
        found = _COMMAND.match(message.text or message.caption or "")
        if found is None or (found["bot"] or self._bot.username).lower() != self._bot.username.lower():
            return None
        return Command(found["name"].lower(), found["rest"].strip())

    def is_addressed(self, messages: Sequence[Message]) -> bool:
        """Whether a message is private, mentions the bot, replies to it, or is a command."""
        return any(
            message.chat.type == "private"
            or self._is_mentioned(message)
            or self._is_own(self._replied_to(message))
            or self.parse_command(message) is not None
            for message in messages
        )

    def has_content(self, message: Message) -> bool:
        """Whether a message has text or a file, unlike service messages, locations and polls."""
        return bool(message.text or message.caption or self._attachments(message))

    def read_question(self, messages: Sequence[Message], *, location: str, is_edited: bool = False) -> Question:
        """The question of one message, or of the messages of one album."""
        head = next((message for message in messages if message.caption or message.text), messages[0])
        text = self._text(head)
        if (command := self.parse_command(head)) is not None:
            text = self._without_name(command.rest)
        files = [file for message in messages for file in self._attachments(message)]
        replied = next((found for message in messages if (found := self._replied_to(message))), None)
        outside = next((message.external_reply for message in messages if message.external_reply), None)
        if outside is not None:
            files += self._attachments(outside)

        async def fetch(key: MessageKey) -> QuotedMessage | None:
            return self._quote(replied) if replied is not None and key == message_key(replied) else None

        return Question(
            requester=requester_from(head),
            key=message_key(head),
            text=text,
            attachments=tuple(files),
            parent=message_key(replied) if replied is not None else None,
            fetch=fetch,
            # The update of an edited album has the edited message only.
            keeps_images=is_edited and head.media_group_id is not None,
            location=location,
        )

    def _quote(self, message: Message) -> QuotedMessage:
        author = message.sender_chat or message.from_user
        return QuotedMessage(
            role="assistant" if self._is_own(message) else "user",
            text="" if self._is_own(message) else self._text(message),
            attachments=tuple(self._attachments(message)),
            author=str(author.id) if author is not None else "",
        )

    def _replied_to(self, message: Message) -> Message | None:
        replied = message.reply_to_message
        # In a topic, Telegram marks messages that reply to nothing as replies to the message that opened the topic.
        if replied is None or replied.forum_topic_created is not None:
            return None
        return replied

    def _is_own(self, message: Message | None) -> bool:
        return message is not None and message.from_user is not None and message.from_user.id == self._bot.id

    def _is_mentioned(self, message: Message) -> bool:
        entities = {**message.parse_entities(), **message.parse_caption_entities()}
        return any(
            (entity.type == "mention" and text.lower() == f"@{self._bot.username}".lower())
            or (entity.type == "text_mention" and entity.user is not None and entity.user.id == self._bot.id)
            for entity, text in entities.items()
        )

    def _text(self, message: Message) -> str:
        content = message.text or message.caption or ""
        for entity, text in {**message.parse_entities(), **message.parse_caption_entities()}.items():
            if entity.type == "text_mention" and entity.user is not None and entity.user.id == self._bot.id:
                content = content.replace(text, "", 1)
        return self._without_name(content)

    def _without_name(self, text: str) -> str:
        name = re.compile(rf"@{re.escape(self._bot.username)}\b[,:]?\s*", re.IGNORECASE)
        return name.sub("", text).strip()

    def _attachments(self, message: Message | ExternalReplyInfo) -> list[Attachment]:
        spoiler = bool(message.has_media_spoiler)
        if message.photo:
            best = message.photo[-1]
            return [self._attachment(best.file_id, best.file_size, spoiler=spoiler)]
        if message.sticker:
            if message.sticker.is_animated or message.sticker.is_video:
                return [_unusable(Unusable.MOVING)]
            return [self._attachment(message.sticker.file_id, message.sticker.file_size, spoiler=False)]
        # Telegram sends a GIF as an animation and, for compatibility, as a document.
        if message.animation or message.video or message.video_note:
            return [_unusable(Unusable.MOVING)]
        if message.document:
            document = message.document
            mime_type = document.mime_type or ""
            # Files of an unknown type may be images, too; they are recognized by content.
            may_be_image = mime_type.startswith("image/") or mime_type in ("", "application/octet-stream")
            if may_be_image or (document.file_name or "").lower().endswith(IMAGE_SUFFIXES):
                return [self._attachment(document.file_id, document.file_size, spoiler=spoiler)]
            return [_unusable(Unusable.MOVING if mime_type.startswith("video/") else Unusable.NOT_AN_IMAGE)]
        if message.audio or message.voice:
            return [_unusable(Unusable.NOT_AN_IMAGE)]
        return []

    def _attachment(self, file_id: str, size: int | None, *, spoiler: bool) -> Attachment:
        async def load(max_bytes: int) -> bytes:
            return await self._download(file_id, max_bytes)

        return Attachment(load, size=size, spoiler=spoiler)

    async def _download(self, file_id: str, max_bytes: int) -> bytes:
        try:
            file = await self._bot.get_file(file_id)
        except BadRequest as error:
            raise (FileTooLarge if "too big" in error.message.lower() else DownloadFailed) from None
        except TelegramError:
            raise DownloadFailed from None
        if file.file_size is not None and file.file_size > max_bytes:
            raise FileTooLarge
        url = file.file_path or ""
        if not urlsplit(url).scheme:
            return _read_local(Path(url), max_bytes)
        try:
            async with self._http.stream("GET", url) as response:
                response.raise_for_status()
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > max_bytes:
                        raise FileTooLarge
        except httpx.HTTPError:
            raise DownloadFailed from None
        return bytes(data)


def _read_local(file: Path, max_bytes: int) -> bytes:
    """Read a file by its path, which a Bot API server in local mode provides instead of a URL."""
    try:
        with file.open("rb") as opened:
            data = opened.read(max_bytes + 1)
    except OSError:
        raise DownloadFailed from None
    if len(data) > max_bytes:
        raise FileTooLarge
    return data


def _unusable(reason: Unusable) -> Attachment:
    async def load(_: int) -> bytes:
        raise DownloadFailed

    return Attachment(load, unusable=reason)
