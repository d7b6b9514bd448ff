"""Where answers appear on Discord: replies in a channel, or the response to a command, menu or button.

The targets render, send and edit, and translate the library's errors into the core's. Their messages ping no one.
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
    "ChannelTarget",
    "InteractionTarget",
    "MessageLocation",
    "is_complete_answer",
    "platform_errors",
    "read_button",
]

_log = logging.getLogger(__name__)

_UNKNOWN_MESSAGE = 10008
_UNUSABLE_REFERENCE = (50035, 160002)
"""The message replied to is deleted, or the bot may not read the history."""
_OTHER_INTERACTION = (_UNKNOWN_MESSAGE, 10015, 50027)
"""The message belongs to another interaction, or the interaction has expired."""
_ALREADY_ACKNOWLEDGED = 40060
_INTERACTION_EXPIRED = (10062, 10015, 50027)
"""The interaction wasn't acknowledged in time, or has expired."""
_RETRY_S = 2.0
_NO_PINGS = discord.AllowedMentions.none()
_BUTTON_PREFIX = "minigpt4"
_MESSAGE_LIMIT = 2000


@dataclass(frozen=True)
class MessageLocation:
    """Where an answer is shown, as it is stored for the next start."""

    channel: int
    question: int | None = None
    """The message that asks."""
    token: str | None = None
    """The token of the interaction that it responds to."""

    def to_json(self) -> str:
        """For ``Question.location``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MessageLocation":
        """Read what ``to_json`` returned."""
        return cls(**json.loads(text))


@contextlib.contextmanager
def platform_errors() -> Iterator[None]:
    """Translate the library's exceptions into the core's.

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
        raise TryLater(_RETRY_S) from error


@contextlib.contextmanager
def _edit_errors() -> Iterator[None]:
    """``platform_errors`` for edits: after a refused edit a new message may still succeed.

    Raises:
        TryLater, MessageGone
    """
    try:
        with platform_errors():
            yield
    except ChatGone as error:
        raise MessageGone(remains=True) from error


def _retry_after(error: discord.HTTPException) -> float:
    """Seconds. Covers responses that the library doesn't retry itself, such as a proxy's."""
    try:
        return max(_RETRY_S, float(error.response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return _RETRY_S


def _render(content: Content) -> str:
    """Markdown with all code and spoilers closed, and without active links and mentions."""
    return safe_markdown(content.text, spoiler=content.spoiler)


def _length(text: str, spoiler: bool) -> int:
    """Upper bound of Discord's length of the rendered text."""
    return utf16_length(safe_markdown(text, spoiler=spoiler))


def _buttons_view(buttons: Buttons, texts: Texts, requester: int) -> discord.ui.View | None:
    """The button below a message. Its id contains the requester's id, so that it works after a restart."""
    if buttons is Buttons.NONE:
        return None
    view = discord.ui.View(timeout=None)
    view.add_item(
        discord.ui.Button(
            style=discord.ButtonStyle.secondary,
            label=texts(f"button.{buttons.value}"),
            custom_id=f"{_BUTTON_PREFIX}:{buttons.value}:{requester}",
        )
    )
    view.stop()  # clicks arrive as events, so the library needn't track the view
    return view


def read_button(custom_id: str) -> tuple[Buttons, int] | None:
    """The button and the requester's id in a ``custom_id``; None for anything else."""
    match custom_id.split(":"):
        case [prefix, ("stop" | "again") as name, requester] if prefix == _BUTTON_PREFIX and requester.isdecimal():
            return Buttons(name), int(requester)
    return None


def is_complete_answer(message: Mapping[str, Any]) -> bool:
    """Whether a message, in Discord's JSON, has the button of complete answers."""
    components = [component for row in message.get("components", ()) for component in row.get("components", ())]
    buttons = [read_button(component.get("custom_id", "")) for component in components]
    return any(button is not None and button[0] is Buttons.REGENERATE for button in buttons)


class ChannelTarget:
    """Replies to a message, in its channel."""

    limit = _MESSAGE_LIMIT
    previews = False

    def __init__(
        self, channel: discord.PartialMessageable, *, reply_to: int | None, requester: int, texts: Texts
    ) -> None:
        self._channel = channel
        self._reply_to = reply_to
        self._requester = requester
        self._texts = texts
        self.rate_key = f"channel {channel.id}"

    def measure(self, text: str, spoiler: bool) -> int:
        """Upper bound of the length as sent."""
        return _length(text, spoiler)

    def key_for(self, message: str) -> MessageKey:
        """Replies refer to the message in the same channel."""
        return MessageKey(str(self._channel.id), message)

    async def send(self, content: Content) -> str:
        """Send a reply, or a plain message if the question is deleted."""
        try:
            with platform_errors():
                return await self._send(content)
        except MessageGone as error:
            raise ChatGone from error

    async def _send(self, content: Content) -> str:
        view = _buttons_view(content.buttons, self._texts, self._requester) or discord.utils.MISSING
        text = _render(content)
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
        view = _buttons_view(content.buttons, self._texts, self._requester)
        with _edit_errors():
            await self._channel.get_partial_message(int(message)).edit(
                content=_render(content), view=view, allowed_mentions=_NO_PINGS
            )

    async def delete(self, message: str) -> None:
        """Delete a message if it still exists."""
        with contextlib.suppress(MessageGone), platform_errors():
            await self._channel.get_partial_message(int(message)).delete()

    async def preview(self, content: Content) -> None:
        """Discord has no previews."""
        raise NotImplementedError


class InteractionTarget:
    """Responds to a command, menu or button, also where the bot isn't a member.

    The first message acknowledges the interaction. If it takes long, ``show_thinking`` does, since Discord drops an
    interaction after three seconds. After 15 minutes, when the interaction has expired, the bot writes as a member.
    """

    limit = _MESSAGE_LIMIT
    previews = False

    def __init__(
        self,
        interaction: discord.Interaction,
        *,
        requester: int,
        texts: Texts,
        channel: discord.PartialMessageable,
        original: str | None = None,
    ) -> None:
        """``original`` is the message of the pressed button, whose interaction is acknowledged already."""
        self._interaction = interaction
        self._requester = requester
        self._texts = texts
        self._channel = channel
        self._original = original
        self._is_thinking = False
        self._was_acknowledged = False
        """Discord received the acknowledgment, but its reply was lost, so the library doesn't count it."""
        self._has_expired = False
        self._acknowledging = asyncio.Lock()
        self.rate_key = f"interaction {interaction.id}"

    def measure(self, text: str, spoiler: bool) -> int:
        """Upper bound of the length as sent."""
        return _length(text, spoiler)

    def key_for(self, message: str) -> MessageKey:
        """Replies refer to the message in the channel."""
        return MessageKey(str(self._channel.id), message)

    @property
    def is_acknowledged(self) -> bool:
        """Whether Discord received a response to the interaction."""
        return self._was_acknowledged or self._interaction.response.is_done()

    async def show_thinking(self, after_s: float) -> None:
        """Show "thinking …" if nothing was sent within ``after_s`` seconds."""
        await asyncio.sleep(after_s)
        async with self._acknowledging:
            if not self.is_acknowledged:
                with contextlib.suppress(discord.HTTPException, aiohttp.ClientError, OSError):
                    await self._interaction.response.defer(thinking=True)
                    self._is_thinking = True

    async def send(self, content: Content) -> str:
        """Send the first message as the response, others as follow-ups; a response without buttons is ephemeral."""
        try:
            with platform_errors():
                try:
                    if not self._has_expired:
                        return await self._send(content)
                except discord.HTTPException as error:
                    if error.code not in _INTERACTION_EXPIRED or content.buttons is Buttons.NONE:
                        raise
                    self._has_expired = True
                view = _buttons_view(content.buttons, self._texts, self._requester) or discord.utils.MISSING
                return str((await self._channel.send(_render(content), view=view, allowed_mentions=_NO_PINGS)).id)
        except MessageGone as error:
            raise ChatGone from error

    async def _send(self, content: Content) -> str:
        view = _buttons_view(content.buttons, self._texts, self._requester) or discord.utils.MISSING
        text = _render(content)
        async with self._acknowledging:
            if not self.is_acknowledged:
                ephemeral = content.buttons is Buttons.NONE
                try:
                    done = await self._interaction.response.send_message(
                        text, view=view, ephemeral=ephemeral, allowed_mentions=_NO_PINGS
                    )
                except discord.HTTPException as error:
                    if error.code != _ALREADY_ACKNOWLEDGED:
                        raise
                    self._was_acknowledged = True
                    self._is_thinking = True
                else:
                    self._original = str(done.message_id)
                    return self._original
            if self._is_thinking:
                edited = await self._interaction.edit_original_response(
                    content=text, view=view, allowed_mentions=_NO_PINGS
                )
                self._is_thinking = False
                self._original = str(edited.id)
                return self._original
        sent = await self._interaction.followup.send(text, view=view, allowed_mentions=_NO_PINGS, wait=True)
        return str(sent.id)

    async def edit(self, message: str, content: Content) -> None:
        """Replace text and buttons, through the interaction until it expires."""
        view = _buttons_view(content.buttons, self._texts, self._requester)
        text = _render(content)
        with _edit_errors():
            try:
                if self._has_expired:
                    partial = self._channel.get_partial_message(int(message))
                    await partial.edit(content=text, view=view, allowed_mentions=_NO_PINGS)
                elif message == self._original:
                    await self._interaction.edit_original_response(content=text, view=view, allowed_mentions=_NO_PINGS)
                else:
                    await self._interaction.followup.edit_message(
                        int(message), content=text, view=view, allowed_mentions=_NO_PINGS
                    )
            except discord.HTTPException as error:
                if self._has_expired or error.code not in _OTHER_INTERACTION:
                    raise
                self._has_expired = error.code in _INTERACTION_EXPIRED
                partial = self._channel.get_partial_message(int(message))
                await partial.edit(content=text, view=view, allowed_mentions=_NO_PINGS)

    async def delete(self, message: str) -> None:
        """Delete a message if it still exists."""
        with contextlib.suppress(MessageGone), platform_errors():
            try:
                await self._interaction.followup.delete_message(int(message))
            except discord.HTTPException as error:
                if error.code not in _OTHER_INTERACTION:
                    raise
                await self._channel.get_partial_message(int(message)).delete()

    async def preview(self, content: Content) -> None:
        """Discord has no previews."""
        raise NotImplementedError
