"""Discord's messages as the core understands them: words, files and what they reply to. Sends nothing but downloads.

Files are fetched from the addresses that Discord gives: attachments from its CDN, pictures in embeds through its proxy.
The address that an embed names itself is never visited.
"""

import re
from collections.abc import Awaitable, Callable, Iterable

import aiohttp
import discord
from discord.http import Route
from yarl import URL

from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, NotFetched, Quoted, TooLarge

__all__ = [
    "Files",
    "asker_of",
    "attachment_of",
    "attachments_of",
    "is_hidden",
    "key_of",
    "parent_of",
    "quote",
    "words_of",
]

_CDN = (".discordapp.com", ".discordapp.net", ".discord.com")
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10, sock_read=20)
_CHUNK = 1 << 16


class Files:
    """Downloads, each up to a number of bytes. Open it within the event loop; ``close`` it at the end."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def loader(self, url: str) -> Callable[[int], Awaitable[bytes]]:
        """What ``Attachment.load`` is to be."""

        async def load(most: int) -> bytes:
            # Whatever size was announced: nothing beyond `most` is kept.
            data = bytearray()
            try:
                async with self._session.get(URL(url, encoded=True), allow_redirects=False) as response:
                    if response.status != 200:
                        raise NotFetched
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        data += chunk
                        if len(data) > most:
                            raise TooLarge
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise NotFetched from error
            return bytes(data)

        return load


def asker_of(user: discord.abc.User, channel: object, *, guild_id: int | None, language: str | None) -> Asker:
    """Who asks and where. ``channel``: whatever the library made of it, or an object with an ``id``."""
    channel_id = str(getattr(channel, "id", ""))
    parent = getattr(channel, "parent_id", None) if isinstance(channel, discord.Thread) else None
    # The member's own list, not the roles that the library happens to know: a list of denied roles must hold.
    roles = getattr(user, "_roles", ())
    return Asker(
        platform="discord",
        user=str(user.id),
        chat=str(guild_id) if guild_id else channel_id,
        channel=channel_id,
        roles=frozenset(str(role) for role in roles),
        private=guild_id is None and isinstance(channel, discord.DMChannel),
        language=language,
        parent_channel=str(parent) if parent else "",
    )


def key_of(message: discord.Message) -> MessageKey:
    """The message's key in conversations."""
    return MessageKey(str(message.channel.id), str(message.id))


def parent_of(message: discord.Message) -> MessageKey | None:
    """The message replied to. A forwarded message is no reply."""
    reference = message.reference
    if reference is None or reference.message_id is None or reference.type is not discord.MessageReferenceType.reply:
        return None
    return MessageKey(str(reference.channel_id), str(reference.message_id))


def words_of(content: str, bot: int) -> str:
    """The words without the bot's mention; other people's mentions lose their ids, own emojis theirs."""
    content = re.sub(rf"<@!?{bot}>", "", content)
    content = re.sub(r"<(@[!&]?|#)\d+>", lambda found: "#channel" if found[1] == "#" else "@someone", content)
    return re.sub(r"<a?(:\w+:)\d+>", r"\1", content).strip()


def attachments_of(message: discord.Message, files: Files) -> tuple[Attachment, ...]:
    """All that may be pictures: files, forwarded files, and pictures that links in the message show."""
    sources: list[discord.Message | discord.MessageSnapshot] = [message, *message.message_snapshots]
    found = [attachment_of(file, files) for source in sources for file in source.attachments]
    for source in sources:
        found += _embedded(source.embeds, files, spoiler="||" in source.content)
    return tuple(found)


def attachment_of(file: discord.Attachment, files: Files) -> Attachment:
    """One file. Its declared type is only believed if it says that this is no picture."""
    kind = (file.content_type or "").split("/")[0]
    unusable: Attachment | None = None
    if kind == "video":
        unusable = Attachment(files.loader(file.url), file.size, unusable="moving")
    elif kind in ("audio", "text"):
        unusable = Attachment(files.loader(file.url), file.size, unusable="not_a_picture")
    return unusable or Attachment(files.loader(file.url), file.size, spoiler=file.is_spoiler())


def is_hidden(message: discord.Message) -> bool:
    """Are the message's contents kept from the bot? Nothing that can be read can be empty in all of these."""
    return not (
        message.content
        or message.attachments
        or message.embeds
        or message.stickers
        or message.message_snapshots
        or message.components
        or message.poll
    )


def quote(message: discord.Message, files: Files, bot: int) -> Quoted:
    """A message from the platform, for a conversation that isn't in memory."""
    if message.author.id == bot:
        return Quoted("assistant", message.content.strip("|"), parent=parent_of(message))
    return Quoted(
        "user",
        words_of(message.content, bot),
        attachments_of(message, files),
        parent_of(message),
        author=str(message.author.id),
    )


def _embedded(embeds: Iterable[discord.Embed], files: Files, *, spoiler: bool) -> list[Attachment]:
    found: list[Attachment] = []
    for embed in embeds:
        if embed.type in ("video", "gifv"):
            continue
        picture = embed.image if embed.image.proxy_url or embed.image.url else embed.thumbnail
        # Articles and the like have small pictures beside their text; only a bare picture is what was meant.
        if embed.type not in ("image", "rich"):
            continue
        if (url := _trusted(picture.proxy_url, picture.url)) is not None:
            found.append(Attachment(files.loader(url), spoiler=spoiler))
    return found


def _trusted(proxy_url: str | None, url: str | None) -> str | None:
    """The proxy's address (made by Discord), or the picture's own if it lies on Discord's CDN."""
    if proxy_url:
        return proxy_url
    if not url:
        return None
    # A server that stands in for Discord stands in for its CDN, too.
    is_own = URL(url).is_absolute() and URL(url).origin() == URL(Route.BASE).origin()
    return url if is_own or f".{URL(url).host}".endswith(_CDN) else None
