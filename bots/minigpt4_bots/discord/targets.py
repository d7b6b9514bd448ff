"""Where answers appear on Discord: replies in a channel, or the answer to a command, menu or button.

Each outlet is a ``Stage`` of the core: it renders, sends and edits, and says in the core's words what went wrong. It
decides nothing. Nothing it sends can ping anybody.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import discord

from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.markup import safe_markdown, utf16_length
from minigpt4_bots.core.streaming import Buttons, ChatGone, Content, MessageGone, TryLater
from minigpt4_bots.core.texts import Texts

__all__ = [
    "ChannelOutlet",
    "InteractionOutlet",
    "Where",
    "buttons_view",
    "is_complete",
    "platform_errors",
    "read_button",
]

_log = logging.getLogger(__name__)

_UNKNOWN_MESSAGE = 10008
_UNUSABLE_REFERENCE = (50035, 160002)
"""The message replied to can't be referred to: gone, or no permission to read the history."""
_NOT_THIS_INTERACTION = (_UNKNOWN_MESSAGE, 10015, 50027)
"""The message belongs to another interaction, or the interaction is too old: the bot's own rights may do."""
_ALREADY_ACKNOWLEDGED = 40060
_TOO_LATE = (10062, 10015, 50027)
"""The interaction wasn't acknowledged in time, or has ended."""
_TRY_AGAIN_S = 2.0
_NO_PINGS = discord.AllowedMentions.none()
_BUTTON = "minigpt4"


@dataclass(frozen=True)
class Where:
    """Where an answer stands, as it is noted (sealed) for the next start."""

    channel: int
    question: int | None = None
    token: str | None = None
    """Of the interaction that it answers."""

    def to_json(self) -> str:
        """As ``Question.place``."""
        return json.dumps(asdict(self))


@contextlib.contextmanager
def platform_errors() -> Iterator[None]:
    """The library's exceptions as the core's.

    Raises:
        TryLater, MessageGone, ChatGone
    """
    try:
        yield
    except discord.NotFound as error:
        raise (MessageGone if error.code == _UNKNOWN_MESSAGE else ChatGone) from error
    except discord.RateLimited as error:
        raise TryLater(error.retry_after) from error
    except discord.HTTPException as error:
        if error.status == 429 or error.status >= 500:
            raise TryLater(_retry_after(error)) from error
        if error.status not in (401, 403):
            _log.error("Discord refused a message: status %d, code %d", error.status, error.code)
        raise ChatGone from error
    except (OSError, aiohttp.ClientError, TimeoutError) as error:
        raise TryLater(_TRY_AGAIN_S) from error


@contextlib.contextmanager
def _edit_errors() -> Iterator[None]:
    """The same for edits: one that is refused says nothing about a new message.

    Raises:
        TryLater, MessageGone
    """
    try:
        with platform_errors():
            yield
    except ChatGone as error:
        raise MessageGone(remains=True) from error


def _retry_after(error: discord.HTTPException) -> float:
    """Seconds. Refusals that the library doesn't wait for itself, such as a proxy's, may say it in a header too."""
    try:
        return max(_TRY_AGAIN_S, float(error.response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return _TRY_AGAIN_S


def render(content: Content) -> str:
    """What is sent: Markdown in which nothing can be clicked and everything is closed."""
    return safe_markdown(content.text, spoiler=content.spoiler)


def buttons_view(buttons: Buttons, texts: Texts, asker: int) -> discord.ui.View | None:
    """The buttons below a message. Whose they are stands in their ids, so that they work after a restart too."""
    if buttons is Buttons.NONE:
        return None
    name = "stop" if buttons is Buttons.STOP else "again"
    view = discord.ui.View(timeout=None)
    view.add_item(
        discord.ui.Button(
            style=discord.ButtonStyle.secondary, label=texts(f"button.{name}"), custom_id=f"{_BUTTON}:{name}:{asker}"
        )
    )
    view.stop()  # clicks come as events; the library needn't remember each message
    return view


def read_button(custom_id: str) -> tuple[str, int] | None:
    """(``stop`` or ``again``, the asker's id) of one of our buttons."""
    match custom_id.split(":"):
        case [prefix, ("stop" | "again") as name, asker] if prefix == _BUTTON and asker.isdecimal():
            return name, int(asker)
    return None


def is_complete(message: Mapping[str, Any]) -> bool:
    """Does a message, in Discord's JSON, offer to answer again?"""
    buttons = [button for row in message.get("components", ()) for button in row.get("components", ())]
    return any((read_button(button.get("custom_id", "")) or ("", 0))[0] == "again" for button in buttons)


class ChannelOutlet:
    """Replies to a message, in its channel."""

    limit = 2000
    previews = False

    def __init__(self, channel: discord.PartialMessageable, *, reply_to: int | None, asker: int, texts: Texts) -> None:
        self._channel = channel
        self._reply_to = reply_to
        self._asker = asker
        self._texts = texts
        self.traffic_key = f"channel {channel.id}"

    def measure(self, text: str, spoiler: bool) -> int:
        """Length as sent, counted in the way that never undercounts."""
        return utf16_length(safe_markdown(text, spoiler=spoiler))

    def key_of(self, message: str) -> MessageKey:
        """Replies to it come in the same channel."""
        return MessageKey(str(self._channel.id), message)

    async def send(self, content: Content) -> str:
        """A reply; a plain message if the question is gone."""
        try:
            with platform_errors():
                return await self._send(content)
        except MessageGone as error:
            raise ChatGone from error

    async def _send(self, content: Content) -> str:
        view = buttons_view(content.buttons, self._texts, self._asker) or discord.utils.MISSING
        text = render(content)
        if self._reply_to is not None:
            reference = discord.MessageReference(
                message_id=self._reply_to, channel_id=self._channel.id, fail_if_not_exists=False
            )
            try:
                sent = await self._channel.send(text, view=view, reference=reference, allowed_mentions=_NO_PINGS)
            except discord.HTTPException as error:
                if error.code not in _UNUSABLE_REFERENCE:
                    raise
                self._reply_to = None
            else:
                return str(sent.id)
        return str((await self._channel.send(text, view=view, allowed_mentions=_NO_PINGS)).id)

    async def edit(self, message: str, content: Content) -> None:
        """Replace text and buttons."""
        view = buttons_view(content.buttons, self._texts, self._asker)
        with _edit_errors():
            await self._channel.get_partial_message(int(message)).edit(
                content=render(content), view=view, allowed_mentions=_NO_PINGS
            )

    async def delete(self, message: str) -> None:
        """Remove it, if it's still there."""
        with contextlib.suppress(MessageGone), platform_errors():
            await self._channel.get_partial_message(int(message)).delete()

    async def preview(self, content: Content) -> None:
        """Discord has nothing like it."""
        raise NotImplementedError


class InteractionOutlet:
    """Answers a command, menu or button, also where the bot itself isn't a member.

    The first message acknowledges the interaction; ``keep_waiting`` does it if that takes long, for Discord gives up
    after three seconds. When the interaction is too old to be edited (15 minutes), the bot's own rights are tried.
    """

    limit = 2000
    previews = False

    def __init__(
        self,
        interaction: discord.Interaction,
        *,
        asker: int,
        texts: Texts,
        channel: discord.PartialMessageable,
        original: str | None = None,
    ) -> None:
        """``original``: the message of the button that was pressed; its interaction is acknowledged already."""
        self._interaction = interaction
        self._asker = asker
        self._texts = texts
        self._channel = channel
        self._original = original
        self._thinking = False
        self._was_acknowledged = False
        """Though the library doesn't know: its reply was lost on the way."""
        self._has_ended = False
        """Discord takes no more answers to the interaction: the bot's own rights must do."""
        self._acknowledging = asyncio.Lock()
        self.traffic_key = f"interaction {interaction.id}"

    measure = ChannelOutlet.measure

    def key_of(self, message: str) -> MessageKey:
        """Replies to it come in the channel."""
        return MessageKey(str(self._channel.id), message)

    @property
    def is_acknowledged(self) -> bool:
        """Does Discord know that the bot is at it?"""
        return self._was_acknowledged or self._interaction.response.is_done()

    async def keep_waiting(self, after_s: float) -> None:
        """Show "thinking …" if nothing was sent so far."""
        await asyncio.sleep(after_s)
        async with self._acknowledging:
            if not self.is_acknowledged:
                with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                    await self._interaction.response.defer(thinking=True)
                    self._thinking = True

    async def send(self, content: Content) -> str:
        """The first message answers the interaction, others follow. Short words of our own are for the asker alone."""
        try:
            with platform_errors():
                try:
                    if not self._has_ended:
                        return await self._send(content)
                except discord.HTTPException as error:
                    if error.code not in _TOO_LATE or content.buttons is Buttons.NONE:
                        raise
                    self._has_ended = True
                view = buttons_view(content.buttons, self._texts, self._asker) or discord.utils.MISSING
                return str((await self._channel.send(render(content), view=view, allowed_mentions=_NO_PINGS)).id)
        except MessageGone as error:
            raise ChatGone from error

    async def _send(self, content: Content) -> str:
        view = buttons_view(content.buttons, self._texts, self._asker) or discord.utils.MISSING
        text = render(content)
        async with self._acknowledging:
            if not self.is_acknowledged:
                private = content.buttons is Buttons.NONE
                try:
                    done = await self._interaction.response.send_message(
                        text, view=view, ephemeral=private, allowed_mentions=_NO_PINGS
                    )
                except discord.HTTPException as error:
                    if error.code != _ALREADY_ACKNOWLEDGED:
                        raise
                    self._was_acknowledged = self._thinking = True
                else:
                    self._original = str(done.message_id)
                    return self._original
            if self._thinking:
                edited = await self._interaction.edit_original_response(
                    content=text, view=view, allowed_mentions=_NO_PINGS
                )
                self._thinking = False
                self._original = str(edited.id)
                return self._original
        sent = await self._interaction.followup.send(text, view=view, allowed_mentions=_NO_PINGS, wait=True)
        return str(sent.id)

    async def edit(self, message: str, content: Content) -> None:
        """Replace text and buttons, through the interaction while it's young."""
        view = buttons_view(content.buttons, self._texts, self._asker)
        text = render(content)
        with _edit_errors():
            try:
                if self._has_ended:
                    partial = self._channel.get_partial_message(int(message))
                    await partial.edit(content=text, view=view, allowed_mentions=_NO_PINGS)
                elif message == self._original:
                    await self._interaction.edit_original_response(content=text, view=view, allowed_mentions=_NO_PINGS)
                else:
                    await self._interaction.followup.edit_message(
                        int(message), content=text, view=view, allowed_mentions=_NO_PINGS
                    )
            except discord.HTTPException as error:
                if self._has_ended or error.code not in _NOT_THIS_INTERACTION:
                    raise
                self._has_ended = error.code in _TOO_LATE
                partial = self._channel.get_partial_message(int(message))
                await partial.edit(content=text, view=view, allowed_mentions=_NO_PINGS)

    async def delete(self, message: str) -> None:
        """Remove it, if it's still there."""
        with contextlib.suppress(MessageGone), platform_errors():
            try:
                await self._interaction.followup.delete_message(int(message))
            except discord.HTTPException as error:
                if error.code not in _NOT_THIS_INTERACTION:
                    raise
                await self._channel.get_partial_message(int(message)).delete()

    async def preview(self, content: Content) -> None:
        """Discord has nothing like it."""
        raise NotImplementedError
