"""The Discord bot on one connection: messages as questions, and answers that an earlier process left unfinished.

Questions arrive as mentions, replies to the bot and private messages (here), or as commands, menus and buttons
(``discord.interactions``). Without the message content intent Discord hides all other messages.
"""

import asyncio
import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import Coroutine, Sequence

import aiohttp
import discord
from discord.http import Route

from minigpt4_bots.core.answer_service import AnswerService
from minigpt4_bots.core.send_queue import Priority, Rate
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.streaming import ChatGone, Content, MessageGone
from minigpt4_bots.core.texts import is_progress_line
from minigpt4_bots.discord.commands import build_tree, upload_commands
from minigpt4_bots.discord.interactions import InteractionHandlers
from minigpt4_bots.discord.messages import Downloader, MessageReader
from minigpt4_bots.discord.targets import ChannelTarget, MessageLocation, is_complete_answer, platform_errors

__all__ = ["OVERALL", "DiscordBot", "rates_for"]

_log = logging.getLogger(__name__)

OVERALL = (Rate(40, 1.05),)
"""Discord allows 50 requests per second; the rest is left for reading."""
_EMBED_WITHIN_S = 3.0
"""How long to wait until Discord embeds the image behind a link."""
_TYPING_EVERY_S = 8.0
_MAX_TRACKED = 4096


def rates_for(_: str) -> Sequence[Rate]:
    """5 writes per 5 s for each channel or interaction; slightly fewer, as clocks differ."""
    return (Rate(5, 5.25),)


class _RecentMessages:
    """The last few messages by id, each with a digest of its text."""

    def __init__(self) -> None:
        self._digests: OrderedDict[int, int] = OrderedDict()

    def add(self, message: discord.Message) -> bool:
        """Add a message; False if it is already there with the same text."""
        digest = hash(message.content)
        if self._digests.get(message.id) == digest:
            return False
        self._digests[message.id] = digest
        if len(self._digests) > _MAX_TRACKED:
            self._digests.popitem(last=False)
        return True

    def __contains__(self, message: int) -> bool:
        return message in self._digests


class DiscordBot(discord.Client):
    """One connection; the ``AnswerService`` outlives it. Create it within the event loop.

    ``read_all`` requests the message content intent.
    """

    def __init__(self, service: AnswerService, settings: BotSettings, *, read_all: bool) -> None:
        super().__init__(
            intents=discord.Intents(guilds=True, guild_messages=True, dm_messages=True, message_content=read_all),
            allowed_mentions=discord.AllowedMentions.none(),
            # The library's caches keep no messages and no members.
            max_messages=None,
            member_cache_flags=discord.MemberCacheFlags.none(),
            chunk_guilds_at_startup=False,
        )
        self._service = service
        self._downloader = Downloader()
        self._reader = MessageReader(self, self._downloader)
        self._interactions = InteractionHandlers(service, self._reader)
        self._tree = build_tree(self, self._interactions, settings.language)
        self._recent = _RecentMessages()
        self._awaiting_embed: dict[int, asyncio.Future[discord.Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Connection

    async def setup_hook(self) -> None:
        """Prepare after the login, before events arrive."""
        self._spawn(self._service.explain_unfinished(self._explain))
        await upload_commands(self._tree, self._service.storage)

    async def on_ready(self) -> None:
        """Log that the bot is ready."""
        reads = "reads all messages" if self.intents.message_content else "reads what is addressed to it"
        _log.info("Ready: connected to Discord, in %d servers; %s.", len(self.guilds), reads)

    async def close(self) -> None:
        """Close the connection and all downloads."""
        for task in list(self._tasks):
            task.cancel()
        await self._downloader.close()
        await super().close()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Messages

    async def on_message(self, message: discord.Message) -> None:
        """Answer a message that is addressed to the bot."""
        if self._reader.is_addressed(message) and self._recent.add(message):
            await self._answer(message)

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """Handle an embed that Discord adds to a link, or an edited question, which is answered again."""
        message = payload.message
        if message.embeds and (future := self._awaiting_embed.pop(message.id, None)) is not None:
            if not future.done():
                future.set_result(message)
            elif self._reader.attachments(message):
                await self._answer(message)  # the first answer went out without the image
        elif message.id in self._recent and self._reader.is_addressed(message) and self._recent.add(message):
            await self._answer(message)

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        """Handle buttons and forms; the command tree handles commands."""
        await self._interactions.on_event(interaction)

    async def _answer(self, message: discord.Message) -> None:
        embed = self._expect_embed(message)  # before the first await, since the embed may arrive during it
        requester = await self._reader.requester(message)
        texts = self._service.texts(requester)
        channel = self._reader.channel(message.channel.id)
        target = ChannelTarget(channel, reply_to=message.id, requester=message.author.id, texts=texts)
        is_allowed = self._service.is_allowed(requester)
        typing = self._spawn(self._type(channel)) if is_allowed else None
        try:
            if embed is not None:
                with contextlib.suppress(TimeoutError):
                    message = await asyncio.wait_for(embed, _EMBED_WITHIN_S)
            question = self._reader.question(message, requester)
            if is_allowed and self._reader.quotes_hidden_message(message, question):
                hint = texts("hint.use_menu", entry=texts("command.ask_about"))
                await self._service.reply(requester, target, hint)
            else:
                await self._service.ask(question, target)
        finally:
            if typing is not None:
                typing.cancel()

    def _expect_embed(self, message: discord.Message) -> "asyncio.Future[discord.Message] | None":
        """Discord embeds the image behind a link shortly after the message; resolves to the edited message."""
        if message.attachments or message.embeds or not re.search(r"https?://", message.content):
            return None
        future = asyncio.get_running_loop().create_future()
        self._awaiting_embed[message.id] = future
        if len(self._awaiting_embed) > _MAX_TRACKED:  # most links never get an embed
            del self._awaiting_embed[next(iter(self._awaiting_embed))]
        return future

    async def _type(self, channel: discord.PartialMessageable) -> None:
        """Show "… is typing" until canceled, as far as the rate limits allow."""
        while True:
            with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                async with self._service.send_queue.slot(f"typing {channel.id}", Priority.CLEANUP):
                    await channel.typing()
            await asyncio.sleep(_TYPING_EVERY_S)

    # Unfinished answers

    async def _explain(self, location_json: str, message: str | None, text: str) -> None:
        """Append the text to the unfinished answer, replace its progress line, or send a new message."""
        location = MessageLocation.from_json(location_json)
        with contextlib.suppress(MessageGone), platform_errors():
            if location.token is not None:
                path = f"/webhooks/{self.application_id}/{location.token}/messages/{message or '@original'}"
                try:
                    await self._append(path, text)
                except discord.HTTPException as error:
                    if message is None or error.status >= 500:
                        raise
                else:
                    return
            message = message or await self._find_answer(location)
            if message is not None:
                await self._append(f"/channels/{location.channel}/messages/{message}", text)
                return
        if location.question is None:
            raise ChatGone
        target = ChannelTarget(
            self._reader.channel(location.channel),
            reply_to=location.question,
            requester=0,
            texts=self._service.texts_in(None),
        )
        await target.send(Content(text))

    async def _find_answer(self, location: MessageLocation) -> str | None:
        """The answer's message, if Discord published it but the process ended before storing its id."""
        if location.question is None:
            return None
        route = Route("GET", "/channels/{channel_id}/messages", channel_id=location.channel)
        try:
            messages = await self.http.request(route, params={"after": location.question, "limit": 50})
        except discord.HTTPException:
            return None
        for message in messages:
            replied_to = (message.get("message_reference") or {}).get("message_id")
            if message["author"]["id"] == str(self._reader.bot_id) and replied_to == str(location.question):
                return str(message["id"])
        return None

    async def _append(self, path: str, text: str) -> None:
        try:
            message = await self.http.request(Route("GET", path))
        except discord.HTTPException as error:
            if error.status >= 500 or error.status == 429:
                raise
            message = {"content": ""}  # the bot may write without the permission to read
        if is_complete_answer(message):
            return  # the process ended between the last edit and the removal of its note
        shown: str = message["content"]
        content = text
        if shown and not is_progress_line(shown):
            content = f"{shown[: ChannelTarget.limit - len(text) - 2]}\n\n{text}"
        changed = {"content": content, "components": [], "allowed_mentions": {"parse": []}}
        await self.http.request(Route("PATCH", path), json=changed)
