"""An answer that grows in a chat: what its messages show next, and their delivery. Knows no platform and no server.

* ``Display``: pieces of text and a status → the next thing to write; without clock or input/output of its own.
* ``deliver``: drives one answer through ``Traffic`` onto a ``Stage``; the complete text always arrives.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from minigpt4_bots.core.markup import fence_at
from minigpt4_bots.core.pages import Pages
from minigpt4_bots.core.send_queue import Ticket, Traffic, Urgency

__all__ = [
    "Buttons",
    "ChatGone",
    "Content",
    "Display",
    "MessageGone",
    "Stage",
    "TryLater",
    "Write",
    "deliver",
]

_log = logging.getLogger(__name__)


class Buttons(Enum):
    """What a message offers."""

    NONE = "none"
    STOP = "stop"
    AGAIN = "again"


@dataclass(frozen=True)
class Content:
    """What a message shows: the model's Markdown, not yet made safe, or our own words."""

    text: str
    buttons: Buttons = Buttons.NONE
    spoiler: bool = False
    own: bool = False
    """Our own words: no Markdown, and commands in them may be clicked."""


class TryLater(Exception):
    """The platform refuses or can't be reached for now."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"try again in {seconds:.0f} s")
        self.seconds = seconds


class MessageGone(Exception):
    """The message can't be edited: it was deleted or, if it ``remains``, the platform refuses."""

    def __init__(self, *, remains: bool = False) -> None:
        super().__init__("can't be edited")
        self.remains = remains


class ChatGone(Exception):
    """The chat can't be written to any more: blocked, kicked out, no permission."""


class Stage(Protocol):
    """One answer's place in a chat. The adapter renders ``Content`` and knows where to reply.

    All methods raise TryLater, MessageGone (``edit`` only) or ChatGone. Markup that the platform refuses is sent again
    as plain text by the adapter; "not modified" counts as done.
    """

    limit: int
    """Characters of one message."""
    previews: bool
    """Growing text is shown by ``preview``; messages are for text that stays. May turn False at any time."""

    def measure(self, text: str, spoiler: bool) -> int:
        """The text's length as the platform will count it after rendering."""

    async def send(self, content: Content) -> str:
        """A new message; returns its id."""

    async def edit(self, message: str, content: Content) -> None:
        """Replace what a message shows."""

    async def delete(self, message: str) -> None:
        """Remove a message; one that is gone already is fine."""

    async def preview(self, content: Content) -> None:
        """Show growing text that the platform forgets by itself."""


@dataclass(frozen=True)
class Write:
    """The next thing to write: a page of the answer, or the ``status`` line while there is no page yet."""

    page: int
    content: Content
    stays: bool
    urgency: Urgency


class Display:
    """What an answer should look like now, and what of it has been written. No clock, no input or output."""

    def __init__(self, *, limit: int, measure: Callable[[str, bool], int], status: str) -> None:
        self._pages = Pages(limit, lambda text: measure(text, self.spoiler))
        self._status = status
        self._written: dict[int, tuple[Content, bool]] = {}
        self._lost: set[int] = set()
        self._last_buttons = Buttons.AGAIN
        self.spoiler = False
        self.finished = False
        self.on_change: Callable[[], None] = lambda: None

    def set_status(self, text: str) -> None:
        """What is shown until the answer's first characters come."""
        self._status = text
        self.on_change()

    def feed(self, text: str) -> None:
        """The answer grows."""
        assert not self.finished, "a finished answer can't grow"
        self._pages.feed(text)
        self.on_change()

    def finish(self, note: str = "", *, buttons: Buttons = Buttons.AGAIN) -> None:
        """The answer is complete. ``note``: our own words below it, or alone."""
        if note:
            if fence_closes := self._open_fence():
                self._pages.feed(f"\n{fence_closes}")
            self._pages.feed(f"\n\n{note}" if self.has_text else note)
        self._last_buttons = buttons
        self.finished = True
        self.on_change()

    @property
    def waiting(self) -> Content:
        """What to show while there is no text, with a button to stop it."""
        return Content(self._status, Buttons.STOP, own=True)

    @property
    def has_text(self) -> bool:
        """Has anything visible been fed?"""
        return bool(self._pages.settled or self._pages.open.strip())

    def next_write(self) -> Write | None:
        """The first page that doesn't show what it should; None if all do."""
        for page in range(len(self._pages)):
            write = self._wanted(page)
            # What somebody deleted comes back once, when it's complete.
            if write is not None and page in self._lost and not write.stays:
                continue
            if write is not None and self._written.get(page) != (write.content, write.stays):
                return write
        return None

    def written(self, write: Write) -> None:
        """The write was done."""
        self._written[write.page] = (write.content, write.stays)

    def lost(self, page: int) -> None:
        """The page's message was deleted, or can't be edited: its complete text must be written anew."""
        self._written.pop(page, None)
        self._lost.add(page)

    def _wanted(self, page: int) -> Write | None:
        is_open = page == len(self._pages.settled)
        text = self._pages[page]
        if is_open and not text.strip():
            if page > 0:
                return None
            text, stays, spoiler, own = self._status, self.finished, False, True
        else:
            stays, spoiler, own = not is_open or self.finished, self.spoiler, False
        is_last = is_open or (page == len(self._pages.settled) - 1 and not self._pages.open.strip())
        buttons = Buttons.NONE
        if is_last:
            buttons = self._last_buttons if self.finished else Buttons.STOP
        urgency = Urgency.ANSWER if stays else Urgency.PROGRESS
        if page == 0 and not self._written:
            urgency = Urgency.FIRST
        return Write(page, Content(text, buttons, spoiler, own), stays, urgency)

    def _open_fence(self) -> str:
        fence = fence_at(self._pages.open)
        return "" if fence is None else fence[: len(fence) - len(fence.lstrip(fence[0]))]


_GIVE_UP_S = 900.0


async def deliver(
    display: Display,
    stage: Stage,
    traffic: Traffic,
    chat: str,
    *,
    first: str | None = None,
    on_message: Callable[[str], None] = lambda _: None,
    sending: asyncio.Lock | None = None,
) -> list[str]:
    """Write until the display is finished and all of it is shown; returns the ids of the messages that stay.

    Args:
        display: fed by somebody else meanwhile.
        stage: where to write.
        traffic: shared by all answers of the platform.
        chat: whose rates hold.
        first: a message to write into instead of sending a new one.
        on_message: told the id of each new message at once.
        sending: held while there may be a message whose id isn't known yet.

    Raises:
        ChatGone: nothing can be written there any more, or the platform refused for 15 minutes.
    """
    delivery = _Delivery(display, stage, first, on_message, sending or asyncio.Lock())
    changed = asyncio.Event()
    ticket: Ticket | None = None
    failing_since: float | None = None
    loop = asyncio.get_running_loop()

    def look_again() -> None:
        changed.set()
        if ticket is not None and (wish := display.next_write()) is not None:
            traffic.hurry(ticket, wish.urgency)

    display.on_change = look_again
    while True:
        changed.clear()
        write = display.next_write()
        if write is None and not display.finished:
            await changed.wait()
            continue
        if write is None and not delivery.leftover:
            return delivery.messages
        ticket = traffic.join(chat, Urgency.TIDY if write is None else write.urgency)
        await traffic.turn(ticket)
        granted, ticket = ticket, None
        # What is newest now, not what was when the waiting began.
        write = display.next_write()
        try:
            if write is not None:
                await delivery.do(write)
            elif display.finished:
                await delivery.tidy()
            failing_since = None
        except TryLater as refusal:
            failing_since = failing_since or loop.time()
            if loop.time() - failing_since > _GIVE_UP_S:
                raise ChatGone from refusal
            traffic.hold(chat, refusal.seconds)
        except MessageGone as gone:
            assert write is not None
            delivery.lost(write.page, remains=gone.remains)
        finally:
            traffic.arrived(granted)


class _Delivery:
    """Which message shows which page."""

    def __init__(
        self,
        display: Display,
        stage: Stage,
        first: str | None,
        on_message: Callable[[str], None],
        sending: asyncio.Lock,
    ) -> None:
        self._display = display
        self._stage = stage
        self._on_message = on_message
        self._sending = sending
        self._message_of: dict[int, str] = {}
        self._placeholder = first
        """Shows the status; becomes page 0, or is deleted if growing text was shown by previews."""
        self._remains: list[str] = []
        """Messages that couldn't be edited and were replaced."""
        self._previewed = False

    @property
    def messages(self) -> list[str]:
        return [message for _, message in sorted(self._message_of.items())]

    @property
    def leftover(self) -> bool:
        return bool(self._placeholder or self._remains)

    async def tidy(self) -> None:
        with contextlib.suppress(ChatGone):  # what may not be removed stays
            for message in filter(None, (self._placeholder, *self._remains)):
                await self._stage.delete(message)
        self._placeholder = None
        self._remains.clear()

    async def do(self, write: Write) -> None:
        status = not self._display.has_text
        if self._stage.previews and not status and not write.stays:
            if self._placeholder is None and not self._previewed:
                # Previews have no buttons: the answer was so quick that nothing with a Stop button is there yet.
                await self._write_first(self._display.waiting, keep=False)
                return
            await self._stage.preview(write.content)
            if self._stage.previews:
                self._previewed = True
                self._display.written(write)
            return
        if write.page == 0 and 0 not in self._message_of and not self._previewed:
            await self._write_first(write.content, keep=not status or self._display.finished)
        elif (message := self._message_of.get(write.page)) is not None:
            await self._stage.edit(message, write.content)
        else:
            self._message_of[write.page] = await self._send(write.content)
        self._display.written(write)

    async def _write_first(self, content: Content, *, keep: bool) -> None:
        if self._placeholder is None:
            self._placeholder = await self._send(content)
        else:
            await self._stage.edit(self._placeholder, content)
        if keep:
            self._message_of[0], self._placeholder = self._placeholder, None

    async def _send(self, content: Content) -> str:
        async with self._sending:
            message = await self._stage.send(content)
            self._on_message(message)
        return message

    def lost(self, page: int, *, remains: bool) -> None:
        message = self._message_of.pop(page, None)
        if message is None:
            message, self._placeholder = self._placeholder, None
        if remains and message is not None:
            self._remains.append(message)
        self._display.lost(page)
