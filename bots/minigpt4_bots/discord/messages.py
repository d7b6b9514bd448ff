"""Converts Discord messages to questions: text, files and the message replied to.

Files are downloaded only from Discord: attachments from its CDN, embedded images through its proxy. An embed's original
URL is requested only if Discord's CDN serves it.
"""

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable

import aiohttp
import discord
from discord.http import Route
from yarl import URL

from minigpt4_bots.core.access import Requester
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, DownloadFailed, FileTooLarge, Question, QuotedMessage, Unusable
from minigpt4_bots.discord.targets import MessageLocation

__all__ = ["Downloader", "MessageReader", "replied_to_key", "requester_from"]

_CDN_DOMAINS = (".discordapp.com", ".discordapp.net", ".discord.com")
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10, sock_read=20)
_CHUNK_BYTES = 1 << 16


class Downloader:
    """Downloads files up to a size limit. Create it within the event loop; ``close`` it at the end."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def loader(self, url: str) -> Callable[[int], Awaitable[bytes]]:
        """A function for ``Attachment.load`` that downloads ``url``."""

        async def load(max_bytes: int) -> bytes:
            # The bytes are counted, because the declared size may be wrong.
            data = bytearray()
            try:
                async with self._session.get(URL(url, encoded=True), allow_redirects=False) as response:
                    if response.status != 200:
                        raise DownloadFailed
                    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                        data += chunk
                        if len(data) > max_bytes:
                            raise FileTooLarge
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise DownloadFailed from error
            return bytes(data)

        return load


class MessageReader:
    """Reads messages for one connection: questions, the messages they quote, their images."""

    def __init__(self, client: discord.Client, downloader: Downloader) -> None:
        self._client = client
        self._downloader = downloader

    @property
    def bot_id(self) -> int:
        """The bot's own user id; known after login."""
        assert self._client.user is not None
        return self._client.user.id

    def channel(self, channel_id: int) -> discord.PartialMessageable:
        """A channel to write to, by id."""
        return self._client.get_partial_messageable(channel_id)

    def question(self, message: discord.Message, requester: Requester) -> Question:
        """The question that a message asks."""
        resolved = message.reference.resolved if message.reference else None

        async def fetch(key: MessageKey) -> QuotedMessage | None:
            if isinstance(resolved, discord.Message) and str(resolved.id) == key.message:
                return self._quote(resolved)
            return await self.fetch(key)

        return Question(
            requester=requester,
            key=MessageKey(str(message.channel.id), str(message.id)),
            text=self.clean_text(message.content),
            attachments=self.attachments(message),
            parent=replied_to_key(message),
            fetch=fetch,
            location=MessageLocation(message.channel.id, question=message.id).to_json(),
        )

    async def requester(self, message: discord.Message) -> Requester:
        """The author of a message."""
        channel: object = message.channel
        guild = message.guild
        if guild is not None and isinstance(channel, discord.PartialMessageable):
            # A thread that isn't in discord.py's cache. It is fetched for its parent channel, whose access lists apply.
            with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                channel = await self._client.fetch_channel(channel.id)
        return requester_from(
            message.author,
            channel,
            guild_id=guild.id if guild else None,
            language=guild.preferred_locale.value if guild else None,
        )

    async def fetch(self, key: MessageKey) -> QuotedMessage | None:
        """Fetch a message for a conversation; None if it is deleted or inaccessible."""
        message = await self.fetch_message(key)
        return None if message is None else self._quote(message)

    async def fetch_message(self, key: MessageKey) -> discord.Message | None:
        """Fetch a message as discord.py's object; None if it is deleted or inaccessible."""
        try:
            return await self.channel(int(key.chat)).fetch_message(int(key.message))
        except (discord.HTTPException, aiohttp.ClientError, OSError):
            return None

    def clean_text(self, content: str) -> str:
        """The text without the bot's mention, and without the ids in other mentions and custom emojis."""
        content = re.sub(rf"<@!?{self.bot_id}>", "", content)
        content = re.sub(r"<(@[!&]?|#)\d+>", lambda found: "#channel" if found[1] == "#" else "@someone", content)
        return re.sub(r"<a?(:\w+:)\d+>", r"\1", content).strip()

    def attachments(self, message: discord.Message) -> tuple[Attachment, ...]:
        """Everything in a message that may be an image: its files, forwarded files and embedded images."""
        sources: list[discord.Message | discord.MessageSnapshot] = [message, *message.message_snapshots]
        found = [self.attachment(file) for source in sources for file in source.attachments]
        for source in sources:
            found += self._embedded(source.embeds, spoiler="||" in source.content)
        return tuple(found)

    def attachment(self, file: discord.Attachment) -> Attachment:
        """One file. Its declared type can only exclude it; whether it is an image is decided by its content."""
        media_type = (file.content_type or "").split("/")[0]
        load = self._downloader.loader(file.url)
        if media_type == "video":
            return Attachment(load, file.size, unusable=Unusable.MOVING)
        if media_type in ("audio", "text"):
            return Attachment(load, file.size, unusable=Unusable.NOT_AN_IMAGE)
        return Attachment(load, file.size, spoiler=file.is_spoiler())

    def quotes_hidden_message(self, message: discord.Message, question: Question) -> bool:
        """Whether the question has no files and replies to a message whose contents Discord hides from the bot."""
        resolved = message.reference.resolved if message.reference else None
        if question.parent is None or question.attachments:
            return False
        return isinstance(resolved, discord.Message) and resolved.author.id != self.bot_id and _is_hidden(resolved)

    def is_addressed(self, message: discord.Message) -> bool:
        """Whether a person's message mentions the bot, replies to it or is private."""
        if message.author.bot or message.type not in (discord.MessageType.default, discord.MessageType.reply):
            return False
        if isinstance(message.channel, discord.DMChannel) or any(user.id == self.bot_id for user in message.mentions):
            return True
        replied_to = message.reference.resolved if message.reference else None
        if not isinstance(replied_to, discord.Message) or replied_to.author.id != self.bot_id:
            return False
        # A reply that doesn't notify the bot: Discord includes its text only with the message content intent.
        return not _is_hidden(message)

    def _quote(self, message: discord.Message) -> QuotedMessage:
        if message.author.id == self.bot_id:
            # An answer under a spoiler was sent as ||answer||.
            return QuotedMessage("assistant", message.content.strip("|"), parent=replied_to_key(message))
        return QuotedMessage(
            "user",
            self.clean_text(message.content),
            self.attachments(message),
            replied_to_key(message),
            author=str(message.author.id),
        )

    def _embedded(self, embeds: Iterable[discord.Embed], *, spoiler: bool) -> list[Attachment]:
        found: list[Attachment] = []
        for embed in embeds:
            # "image" is a link to an image, "rich" an embed made by a bot or webhook. Links to articles and videos have
            # thumbnails, too, but these aren't what the message shows.
            if embed.type not in ("image", "rich"):
                continue
            image = embed.image if embed.image.proxy_url or embed.image.url else embed.thumbnail
            if (url := _trusted_url(image.proxy_url, image.url)) is not None:
                found.append(Attachment(self._downloader.loader(url), spoiler=spoiler))
        return found


def requester_from(user: discord.abc.User, channel: object, *, guild_id: int | None, language: str | None) -> Requester:
    """The requester for a user in a channel. ``channel`` is any of discord.py's types, or an object with an ``id``."""
    channel_id = str(getattr(channel, "id", ""))
    parent = getattr(channel, "parent_id", None) if isinstance(channel, discord.Thread) else None
    # `roles` lists only roles in discord.py's cache; deny lists apply to all of them.
    roles = getattr(user, "_roles", ())
    return Requester(
        platform="discord",
        user=str(user.id),
        chat=str(guild_id) if guild_id else channel_id,
        channel=channel_id,
        roles=frozenset(str(role) for role in roles),
        private=guild_id is None and isinstance(channel, discord.DMChannel),
        language=language,
        parent_channel=str(parent) if parent else "",
    )


def replied_to_key(message: discord.Message) -> MessageKey | None:
    """The key of the message replied to; None if there is none. A forwarded message isn't a reply."""
    reference = message.reference
    if reference is None or reference.message_id is None or reference.type is not discord.MessageReferenceType.reply:
        return None
    return MessageKey(str(reference.channel_id), str(reference.message_id))


def _is_hidden(message: discord.Message) -> bool:
    """Whether Discord hides the message's contents from the bot: a readable message is never empty."""
    return not (
        message.content
        or message.attachments
        or message.embeds
        or message.stickers
        or message.message_snapshots
        or message.components
        or message.poll
    )


def _trusted_url(proxy_url: str | None, url: str | None) -> str | None:
    """The URL of Discord's proxy, or the original URL if Discord's CDN serves it, or None."""
    return next((one for one in (proxy_url, url) if one and _is_discords(one)), None)


def _is_discords(address: str) -> bool:
    """Whether Discord's server has this address; with the setting `discord.api_base`, that server counts, too."""
    try:
        url = URL(address)
        if url.is_absolute() and url.origin() == URL(Route.BASE).origin():
            return True
    except ValueError:  # no URL
        return False
    return url.scheme == "https" and url.user is None and f".{url.host}".endswith(_CDN_DOMAINS)
