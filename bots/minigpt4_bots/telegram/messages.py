"""Telegram's messages → questions: what is a picture, who is meant, what replies to what. Sends nothing.

Files are downloaded here, within a limit, by addresses that hold the bot's token: neither they nor an exception that
quotes them ever leaves this module.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from telegram import Bot, ExternalReplyInfo, Message, User
from telegram.error import BadRequest, TelegramError

from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, NotFetched, Question, Quoted, TooLarge

__all__ = ["Command", "Reader", "asker_of", "channel_of", "key_of", "thread_of"]

_COMMAND = re.compile(r"/(?P<name>[A-Za-z0-9_]{1,32})(?:@(?P<bot>\w+))?(?:\s+|$)(?P<rest>.*)", re.DOTALL)
_PICTURE_NAME = re.compile(r"\.(png|jpe?g|webp|gif|bmp)$", re.IGNORECASE)


@dataclass(frozen=True)
class Command:
    """``/name rest``, meant for this bot."""

    name: str
    rest: str


def key_of(message: Message) -> MessageKey:
    """The message's key in memory."""
    return MessageKey(str(message.chat.id), str(message.message_id))


def thread_of(message: Message) -> int | None:
    """The forum topic; None for plain threads of replies, which need no separation."""
    return message.message_thread_id if message.is_topic_message else None


def channel_of(message: Message) -> str:
    """``chat/topic`` within topics, else empty."""
    thread = thread_of(message)
    return f"{message.chat.id}/{thread}" if thread is not None else ""


def asker_of(message: Message, user: User | None = None) -> Asker:
    """Who asks by a message, or by pressing a button under it if ``user`` is given."""
    # Anonymous administrators and channels write in the name of a chat.
    behind = None if user is not None else message.sender_chat
    person = user or message.from_user
    identity = behind.id if behind is not None else person.id if person is not None else message.chat.id
    return Asker(
        platform="telegram",
        user=str(identity),
        chat=str(message.chat.id),
        channel=channel_of(message),
        private=message.chat.type == "private",
        language=person.language_code if person is not None else None,
    )


class Reader:
    """Reads messages as the bot that it is told to be."""

    def __init__(self, bot: Bot, client: httpx.AsyncClient) -> None:
        self._bot = bot
        self._client = client

    def command_of(self, message: Message) -> Command | None:
        """The command at the message's beginning, unless it's for another bot."""
        found = _COMMAND.match(message.text or message.caption or "")
        if found is None or (found["bot"] or self._bot.username).lower() != self._bot.username.lower():
            return None
        return Command(found["name"].lower(), found["rest"].strip())

    def is_meant(self, messages: Sequence[Message]) -> bool:
        """Is the bot addressed: in private, by its name, by a reply to it, or by a command?"""
        return any(
            message.chat.type == "private"
            or self._is_mentioned(message)
            or self._is_own(self._replied_to(message))
            or self.command_of(message) is not None
            for message in messages
        )

    def has_content(self, message: Message) -> bool:
        """Words or a file: not a service message, a place on a map or a poll."""
        return bool(message.text or message.caption or self._files_of(message))

    def question_of(self, messages: Sequence[Message], *, place: str, is_edited: bool = False) -> Question:
        """What one message, or the messages of one album, ask."""
        head = next((message for message in messages if message.caption or message.text), messages[0])
        words = self._words_of(head)
        if (command := self.command_of(head)) is not None:
            words = self._without_name(command.rest)
        files = [file for message in messages for file in self._files_of(message)]
        replied = next((found for message in messages if (found := self._replied_to(message))), None)
        outside = next((message.external_reply for message in messages if message.external_reply), None)
        if outside is not None:
            files += self._files_of(outside)

        async def fetch(key: MessageKey) -> Quoted | None:
            return self._quoted(replied) if replied is not None and key == key_of(replied) else None

        return Question(
            asker=asker_of(head),
            key=key_of(head),
            text=words,
            attachments=tuple(files),
            parent=key_of(replied) if replied is not None else None,
            fetch=fetch,
            # Of an edited album only the edited message comes again.
            keeps_pictures=is_edited and head.media_group_id is not None,
            place=place,
        )

    def _quoted(self, message: Message) -> Quoted:
        author = message.sender_chat or message.from_user
        return Quoted(
            role="assistant" if self._is_own(message) else "user",
            text="" if self._is_own(message) else self._words_of(message),
            attachments=tuple(self._files_of(message)),
            author=str(author.id) if author is not None else "",
        )

    def _replied_to(self, message: Message) -> Message | None:
        replied = message.reply_to_message
        # In a topic, every message that replies to nothing "replies" to the message that opened the topic.
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

    def _words_of(self, message: Message) -> str:
        words = message.text or message.caption or ""
        for entity, text in {**message.parse_entities(), **message.parse_caption_entities()}.items():
            if entity.type == "text_mention" and entity.user is not None and entity.user.id == self._bot.id:
                words = words.replace(text, "", 1)
        return self._without_name(words)

    def _without_name(self, words: str) -> str:
        name = re.compile(rf"@{re.escape(self._bot.username)}\b[,:]?\s*", re.IGNORECASE)
        return name.sub("", words).strip()

    def _files_of(self, message: Message | ExternalReplyInfo) -> list[Attachment]:
        spoiler = bool(message.has_media_spoiler)
        if message.photo:
            best = message.photo[-1]
            return [self._attachment(best.file_id, best.file_size, spoiler=spoiler)]
        if message.sticker:
            if message.sticker.is_animated or message.sticker.is_video:
                return [_unusable(is_moving=True)]
            return [self._attachment(message.sticker.file_id, message.sticker.file_size, spoiler=False)]
        # A GIF comes as an animation, and as a document beside it.
        if message.animation or message.video or message.video_note:
            return [_unusable(is_moving=True)]
        if message.document:
            document = message.document
            kind = document.mime_type or ""
            # What calls itself a picture is looked at; so is what doesn't say what it is.
            may_be_picture = kind.startswith("image/") or kind in ("", "application/octet-stream")
            if may_be_picture or _PICTURE_NAME.search(document.file_name or ""):
                return [self._attachment(document.file_id, document.file_size, spoiler=spoiler)]
            return [_unusable(is_moving=kind.startswith("video/"))]
        if message.audio or message.voice:
            return [_unusable(is_moving=False)]
        return []

    def _attachment(self, file_id: str, size: int | None, *, spoiler: bool) -> Attachment:
        async def load(most: int) -> bytes:
            return await self._download(file_id, most)

        return Attachment(load, size=size, spoiler=spoiler)

    async def _download(self, file_id: str, most: int) -> bytes:
        try:
            file = await self._bot.get_file(file_id)
        except BadRequest as error:
            raise (TooLarge if "too big" in error.message.lower() else NotFetched) from None
        except TelegramError:
            raise NotFetched from None
        if file.file_size is not None and file.file_size > most:
            raise TooLarge
        address = file.file_path or ""
        if not urlsplit(address).scheme:
            return _read_local(Path(address), most)
        try:
            async with self._client.stream("GET", address) as response:
                response.raise_for_status()
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > most:
                        raise TooLarge
        except httpx.HTTPError:
            raise NotFetched from None
        return bytes(data)


def _read_local(file: Path, most: int) -> bytes:
    """A local Bot API server in its local mode hands out paths instead of addresses."""
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError:
        raise NotFetched from None
    if len(data) > most:
        raise TooLarge
    return data


def _unusable(*, is_moving: bool) -> Attachment:
    async def load(_: int) -> bytes:
        raise NotFetched

    return Attachment(load, unusable="moving" if is_moving else "not_a_picture")
