"""The Discord bot's connection: messages in, questions out, and what an earlier life left unfinished.

A question comes by a mention, a reply to the bot or a private message (here), or by a command, menu or button
(``discord_interactions``). Without the message content intent Discord hides other messages, and none of them is needed.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Coroutine, Sequence

import aiohttp
import discord
from discord.http import Route

from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.answer_service import Answering
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Question, Quoted
from minigpt4_bots.core.send_queue import Rate, Urgency
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.streaming import ChatGone, Content, MessageGone
from minigpt4_bots.discord.commands import build_tree, synchronise
from minigpt4_bots.discord.interactions import Interactions
from minigpt4_bots.discord.messages import (
    Files,
    asker_of,
    attachments_of,
    is_hidden,
    key_of,
    parent_of,
    quote,
    words_of,
)
from minigpt4_bots.discord.targets import ChannelOutlet, Where, is_complete, platform_errors

__all__ = ["OVERALL", "DiscordBot", "rates_of"]

_log = logging.getLogger(__name__)

OVERALL = (Rate(40, 1.05),)
"""Discord allows 50 requests a second; a few are left for what is read."""
_UNFURL_S = 3.0
"""How long Discord may take to show the picture behind a link."""
_TYPING_EVERY_S = 8.0
_REMEMBERED = 4096
_STATUS = ("👀", "💭", "⏳")
"""How our own progress lines begin, in every language."""


def rates_of(_: str) -> Sequence[Rate]:
    """5 writes per 5 s and channel or interaction; a little less, as clocks differ."""
    return (Rate(5, 5.25),)


class _Recent:
    """The last few messages by id, each with a digest of its words."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, int] = OrderedDict()

    def is_new(self, message: discord.Message) -> bool:
        """False if it was met before with the same words."""
        digest = hash(message.content)
        if self._known.get(message.id) == digest:
            return False
        self._known[message.id] = digest
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return True

    def __contains__(self, message: int) -> bool:
        return message in self._known


class DiscordBot(discord.Client):
    """One connection's life; ``Answering`` outlives it. ``read_all``: ask for the message content intent."""

    def __init__(self, answering: Answering, settings: BotSettings, *, read_all: bool) -> None:
        super().__init__(
            intents=discord.Intents(guilds=True, guild_messages=True, dm_messages=True, message_content=read_all),
            allowed_mentions=discord.AllowedMentions.none(),
            # Nothing that people wrote stays in the library's caches.
            max_messages=None,
            member_cache_flags=discord.MemberCacheFlags.none(),
            chunk_guilds_at_startup=False,
        )
        self.answering = answering
        self._interactions = Interactions(self)
        self._tree = build_tree(self, self._interactions, settings.language)
        self._files: Files | None = None
        self._met = _Recent()
        self._unfurling: dict[int, asyncio.Future[discord.Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def files(self) -> Files:
        """Downloads; opened by ``setup_hook``."""
        assert self._files is not None
        return self._files

    @property
    def me(self) -> int:
        """The bot's own id."""
        assert self.user is not None
        return self.user.id

    # The connection's life

    async def setup_hook(self) -> None:
        """After login, before the gateway: nobody can ask yet."""
        self._files = Files()
        self._spawn(self.answering.explain_unfinished(self._explain))
        await synchronise(self._tree, self.answering.storage)

    async def on_ready(self) -> None:
        """Tell the log that people can ask now."""
        reads = "reads all messages" if self.intents.message_content else "reads what is addressed to it"
        _log.info("Ready: connected to Discord, in %d servers; %s.", len(self.guilds), reads)

    async def close(self) -> None:
        """Close the connection and all downloads."""
        for task in list(self._tasks):
            task.cancel()
        if self._files is not None:
            await self._files.close()
        await super().close()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Messages

    async def on_message(self, message: discord.Message) -> None:
        """Somebody wrote something."""
        if self._is_for_me(message) and self._met.is_new(message):
            await self._answer(message)

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        """A link has got its picture, or somebody has changed a question: then it's answered anew."""
        message = payload.message
        if message.embeds and (waiting := self._unfurling.pop(message.id, None)) is not None:
            if not waiting.done():
                waiting.set_result(message)
            elif attachments_of(message, self.files):
                # It was answered without: later than never.
                await self._answer(message)
        elif message.id in self._met and self._is_for_me(message) and self._met.is_new(message):
            await self._answer(message)

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        """A button or a window of questions; commands come by the tree."""
        await self._interactions.on_event(interaction)

    def _is_for_me(self, message: discord.Message) -> bool:
        """People's own messages that mention the bot, reply to it or come in private."""
        if message.author.bot or message.type not in (discord.MessageType.default, discord.MessageType.reply):
            return False
        if isinstance(message.channel, discord.DMChannel) or any(user.id == self.me for user in message.mentions):
            return True
        replied_to = message.reference.resolved if message.reference else None
        # A reply that notifies nobody: its words are only there with the intent.
        return isinstance(replied_to, discord.Message) and replied_to.author.id == self.me and not is_hidden(message)

    async def _answer(self, message: discord.Message) -> None:
        unfurling = self._expect_picture(message)  # before anything is waited for: it may come meanwhile
        asker = await self._asker(message)
        texts = self.answering.texts(asker)
        channel = self.get_partial_messageable(message.channel.id)
        outlet = ChannelOutlet(channel, reply_to=message.id, asker=message.author.id, texts=texts)
        is_allowed = self.answering.is_allowed(asker)
        typing = self._spawn(self._type(channel)) if is_allowed else None
        try:
            if unfurling is not None:
                with contextlib.suppress(TimeoutError):
                    message = await asyncio.wait_for(unfurling, _UNFURL_S)
            question = self.question(message, asker)
            if is_allowed and self._cannot_see_picture(message, question):
                await self.answering.reply(asker, outlet, texts("hint.use_menu", entry=texts("command.ask_about")))
            else:
                await self.answering.ask(question, outlet)
        finally:
            if typing is not None:
                typing.cancel()

    def question(self, message: discord.Message, asker: Asker) -> Question:
        """What a message asks."""
        resolved = message.reference.resolved if message.reference else None

        async def fetch(key: MessageKey) -> Quoted | None:
            if isinstance(resolved, discord.Message) and str(resolved.id) == key.message:
                return quote(resolved, self.files, self.me)
            return await self.fetch(key)

        return Question(
            asker=asker,
            key=key_of(message),
            text=words_of(message.content, self.me),
            attachments=attachments_of(message, self.files),
            parent=parent_of(message),
            fetch=fetch,
            place=Where(message.channel.id, question=message.id).to_json(),
        )

    async def fetch(self, key: MessageKey) -> Quoted | None:
        """Look up a message; None if it's gone or out of reach."""
        message = await self.fetch_message(key)
        return None if message is None else quote(message, self.files, self.me)

    async def fetch_message(self, key: MessageKey) -> discord.Message | None:
        """Look up a message as the library gives it; None if it's gone or out of reach."""
        channel = self.get_partial_messageable(int(key.chat))
        try:
            return await channel.fetch_message(int(key.message))
        except (discord.HTTPException, aiohttp.ClientError, OSError):
            return None

    async def _asker(self, message: discord.Message) -> Asker:
        channel: object = message.channel
        guild = message.guild
        if guild is not None and isinstance(channel, discord.PartialMessageable):
            # A thread that the library hasn't met: lists that name its channel hold for it too.
            with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                channel = await self.fetch_channel(channel.id)
        return asker_of(
            message.author,
            channel,
            guild_id=guild.id if guild else None,
            language=guild.preferred_locale.value if guild else None,
        )

    def _cannot_see_picture(self, message: discord.Message, question: Question) -> bool:
        """Is it about a message whose contents Discord keeps from the bot?"""
        resolved = message.reference.resolved if message.reference else None
        if question.parent is None or question.attachments:
            return False
        return isinstance(resolved, discord.Message) and resolved.author.id != self.me and is_hidden(resolved)

    def _expect_picture(self, message: discord.Message) -> "asyncio.Future[discord.Message] | None":
        """Discord adds the picture behind a link a moment after the message: what brings the message with it."""
        if message.attachments or message.embeds or not re.search(r"https?://", message.content):
            return None
        unfurling = self._unfurling[message.id] = asyncio.get_running_loop().create_future()
        if len(self._unfurling) > _REMEMBERED:  # most links never show a picture
            del self._unfurling[next(iter(self._unfurling))]
        return unfurling

    async def _type(self, channel: discord.PartialMessageable) -> None:
        """Show "… is typing" until cancelled; only when there is room below the limits."""
        while True:
            with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                async with self.answering.traffic.slot(f"typing {channel.id}", Urgency.TIDY):
                    await channel.typing()
            await asyncio.sleep(_TYPING_EVERY_S)

    # After a crash

    async def _explain(self, place: str, message: str | None, text: str) -> None:
        """Below what there is of an answer, or in the place of its progress line; as a new message if there is none."""
        where = Where(**json.loads(place))
        channel = self.get_partial_messageable(where.channel)
        with contextlib.suppress(MessageGone), platform_errors():
            if where.token is not None:
                path = f"/webhooks/{self.application_id}/{where.token}/messages/{message or '@original'}"
                try:
                    await self._append(path, text)
                except discord.HTTPException as error:
                    if message is None or error.status >= 500:
                        raise
                else:
                    return
            message = message or await self._begun_answer(where)
            if message is not None:
                await self._append(f"/channels/{where.channel}/messages/{message}", text)
                return
        if where.question is None:
            raise ChatGone
        outlet = ChannelOutlet(channel, reply_to=where.question, asker=0, texts=self.answering.texts(_NOBODY))
        await outlet.send(Content(text))

    async def _begun_answer(self, where: Where) -> str | None:
        """A message that Discord published just before the crash, so that it wasn't noted."""
        if where.question is None:
            return None
        route = Route("GET", "/channels/{channel_id}/messages", channel_id=where.channel)
        try:
            after = await self.http.request(route, params={"after": where.question, "limit": 50})
        except discord.HTTPException:
            return None
        for found in after:
            replied_to = (found.get("message_reference") or {}).get("message_id")
            if found["author"]["id"] == str(self.me) and replied_to == str(where.question):
                return str(found["id"])
        return None

    async def _append(self, path: str, text: str) -> None:
        try:
            found = await self.http.request(Route("GET", path))
        except discord.HTTPException as error:
            if error.status >= 500 or error.status == 429:
                raise
            found = {"content": ""}  # what may not be read may still be written
        if is_complete(found):
            return  # killed between its last word and our note of that
        before: str = found["content"]
        words = text
        if before and not before.startswith(_STATUS):
            words = f"{before[: ChannelOutlet.limit - len(text) - 2]}\n\n{text}"
        changed = {"content": words, "components": [], "allowed_mentions": {"parse": []}}
        await self.http.request(Route("PATCH", path), json=changed)


_NOBODY = Asker(platform="discord", user="", chat="")
