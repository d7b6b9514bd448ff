"""A streamed answer in a chat: the content its messages should show, and the writes that get it there.

* ``StreamingMessage`` turns text deltas and a status into the next write. It has no clock and does no I/O.
* ``deliver`` writes one to a ``MessageTarget`` through a ``SendQueue``, until the complete text is shown.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.markup import fence_at
from minigpt4_bots.core.pages import Pages
from minigpt4_bots.core.send_queue import PendingSend, Priority, SendQueue

__all__ = [
    "Buttons",
    "ChatGone",
    "Content",
    "MessageGone",
    "MessageTarget",
    "StreamingMessage",
    "TryLater",
    "Write",
    "deliver",
]

_GIVE_UP_S = 900.0


class Buttons(Enum):
    """The button below a message."""

    NONE = "none"
    STOP = "stop"
    REGENERATE = "again"


@dataclass(frozen=True)
class Content:
    """The content of a message: the model's Markdown, not yet escaped, or the bot's own text."""

    text: str
    buttons: Buttons = Buttons.NONE
    spoiler: bool = False
    own: bool = False
    """The bot's own text: no Markdown, and commands in it may be clickable."""


class TryLater(Exception):
    """The platform refuses the write for now, or is unreachable."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"try again in {seconds:.0f} s")
        self.seconds = seconds


class MessageGone(Exception):
    """The message can't be edited: it was deleted or, if it ``remains``, the platform refuses edits."""

    def __init__(self, *, remains: bool = False) -> None:
        super().__init__("can't be edited")
        self.remains = remains


class ChatGone(Exception):
    """The bot can't write to the chat any more: it is blocked, was removed or lacks the permission."""


class MessageTarget(Protocol):
    """The place in a chat where one answer appears. The adapter renders ``Content`` and chooses what to reply to.

    ``send``, ``edit``, ``delete`` and ``preview`` raise TryLater, MessageGone (``edit`` only) or ChatGone. Where the
    platform refuses the markup, the adapter sends plain text instead; "not modified" counts as success.
    """

    limit: int
    """Characters per message."""
    previews: bool
    """Growing text is shown by ``preview``, and messages hold text that stays. May turn False at any time."""
    rate_key: str
    """The key of the platform's rate limits, usually the chat."""

    def measure(self, text: str, spoiler: bool) -> int:
        """Length of the text as the platform counts it after rendering."""

    def key_for(self, message: str) -> MessageKey:
        """The key by which replies refer to one of this target's messages."""

    async def send(self, content: Content) -> str:
        """Send a message; returns its id."""

    async def edit(self, message: str, content: Content) -> None:
        """Replace the content of a message."""

    async def delete(self, message: str) -> None:
        """Delete a message. A message that is already gone is no error."""

    async def preview(self, content: Content) -> None:
        """Show growing text that the platform discards by itself."""


@dataclass(frozen=True)
class Write:
    """The next write: a page of the answer, or the status while there is no text yet."""

    page: int
    content: Content
    stays: bool
    priority: Priority


class StreamingMessage:
    """The pages of an answer as they should be shown, and as they were written. No clock, no I/O."""

    def __init__(self, *, limit: int, measure: Callable[[str, bool], int], status: str) -> None:
        self._pages = Pages(limit, lambda text: measure(text, self.spoiler))
        self._status = status
        self._written: dict[int, tuple[Content, bool]] = {}
        self._lost: set[int] = set()
        self._last_buttons = Buttons.REGENERATE
        self.spoiler = False
        self.finished = False
        self.on_change: Callable[[], None] = lambda: None

    def set_status(self, text: str) -> None:
        """Set the text shown until the answer begins."""
        self._status = text
        self.on_change()

    def feed(self, text: str) -> None:
        """Append a text delta."""
        assert not self.finished, "a finished answer can't grow"
        self._pages.feed(text)
        self.on_change()

    def finish(self, note: str = "", *, buttons: Buttons = Buttons.REGENERATE) -> None:
        """Complete the answer. ``note`` is the bot's own text below it."""
        if note:
            if fence_closes := self._open_fence():
                self._pages.feed(f"\n{fence_closes}")
            self._pages.feed(f"\n\n{note}" if self.has_text else note)
        self._last_buttons = buttons
        self.finished = True
        self.on_change()

    @property
    def waiting(self) -> Content:
        """The status with a stop button."""
        return Content(self._status, Buttons.STOP, own=True)

    @property
    def has_text(self) -> bool:
        """Whether the answer has any visible text."""
        return bool(self._pages.settled or self._pages.open.strip())

    def next_write(self) -> Write | None:
        """The first page that is out of date; None if all are current."""
        for page in range(len(self._pages)):
            write = self._target_write(page)
            # A deleted message is sent again once, when its text is complete.
            if write is not None and page in self._lost and not write.stays:
                continue
            if write is not None and self._written.get(page) != (write.content, write.stays):
                return write
        return None

    def written(self, write: Write) -> None:
        """Record that the write succeeded."""
        self._written[write.page] = (write.content, write.stays)

    def lost(self, page: int) -> None:
        """Record that the page's message was deleted or can't be edited, so its complete text is sent again."""
        self._written.pop(page, None)
        self._lost.add(page)

    def _target_write(self, page: int) -> Write | None:
        is_open = page == len(self._pages.settled)
        text = self._pages[page]
        is_status = is_open and not text.strip()
        if is_status and page > 0:
            return None
        is_last = is_open or (page == len(self._pages.settled) - 1 and not self._pages.open.strip())
        buttons = Buttons.NONE
        if is_last:
            buttons = self._last_buttons if self.finished else Buttons.STOP
        content = Content(text, buttons, self.spoiler)
        if is_status:
            content = Content(self._status, buttons, own=True)
        stays = self.finished or not is_open
        priority = Priority.ANSWER if stays else Priority.PROGRESS
        if page == 0 and not self._written:
            priority = Priority.FIRST
        return Write(page, content, stays, priority)

    def _open_fence(self) -> str:
        fence = fence_at(self._pages.open)
        return "" if fence is None else fence[: len(fence) - len(fence.lstrip(fence[0]))]


async def deliver(
    message: StreamingMessage,
    target: MessageTarget,
    send_queue: SendQueue,
    *,
    first: str | None = None,
    on_message: Callable[[str], None] = lambda _: None,
    sending: asyncio.Lock | None = None,
) -> list[str]:
    """Write until the message is finished and shown completely; returns the ids of its messages on the platform.

    Args:
        message: the content, which another task feeds meanwhile.
        target: where to write.
        send_queue: shared by all answers on the platform.
        first: the id of an existing message to write into instead of sending a new one.
        on_message: called with the id of each new message.
        sending: held while a message is being sent and its id isn't known yet.

    Raises:
        ChatGone: the chat can't be written to any more, or the platform refused for 15 minutes.
    """
    delivery = _Delivery(message, target, first, on_message, sending or asyncio.Lock())
    changed = asyncio.Event()
    pending: PendingSend | None = None
    failing_since: float | None = None
    loop = asyncio.get_running_loop()

    def on_change() -> None:
        changed.set()
        if pending is not None and (write := message.next_write()) is not None:
            send_queue.raise_priority(pending, write.priority)

    message.on_change = on_change
    while True:
        changed.clear()
        write = message.next_write()
        if write is None and not message.finished:
            await changed.wait()
            continue
        if write is None and not delivery.needs_cleanup:
            return delivery.messages
        pending = send_queue.enqueue(target.rate_key, Priority.CLEANUP if write is None else write.priority)
        await send_queue.wait(pending)
        granted = pending
        pending = None
        # The content may have changed while the send was queued.
        write = message.next_write()
        try:
            if write is not None:
                await delivery.write(write)
            elif message.finished:
                await delivery.clean_up()
            failing_since = None
        except TryLater as refusal:
            failing_since = failing_since or loop.time()
            if loop.time() - failing_since > _GIVE_UP_S:
                raise ChatGone from refusal
            send_queue.pause(target.rate_key, refusal.seconds)
        except MessageGone as gone:
            assert write is not None
            delivery.lost(write.page, remains=gone.remains)
        finally:
            send_queue.done(granted)


class _Delivery:
    """Maps the pages of an answer to messages on the platform."""

    def __init__(
        self,
        message: StreamingMessage,
        target: MessageTarget,
        first: str | None,
        on_message: Callable[[str], None],
        sending: asyncio.Lock,
    ) -> None:
        self._message = message
        self._target = target
        self._on_message = on_message
        self._sending = sending
        self._ids: dict[int, str] = {}
        """Page → message id."""
        self._placeholder = first
        """Shows the status. Becomes page 0, or is deleted if previews showed the growing text."""
        self._remains: list[str] = []
        """Messages that couldn't be edited and were replaced."""
        self._previewed = False

    @property
    def messages(self) -> list[str]:
        return [message for _, message in sorted(self._ids.items())]

    @property
    def needs_cleanup(self) -> bool:
        return bool(self._placeholder or self._remains)

    async def clean_up(self) -> None:
        with contextlib.suppress(ChatGone):  # a message that can't be deleted stays
            for message in filter(None, (self._placeholder, *self._remains)):
                await self._target.delete(message)
        self._placeholder = None
        self._remains.clear()

    async def write(self, write: Write) -> None:
        is_status = not self._message.has_text
        if self._target.previews and not is_status and not write.stays:
            await self._preview(write)
            return
        if write.page == 0 and 0 not in self._ids and not self._previewed:
            await self._write_first(write.content, keep=not is_status or self._message.finished)
        elif (message := self._ids.get(write.page)) is not None:
            await self._target.edit(message, write.content)
        else:
            self._ids[write.page] = await self._send(write.content)
        self._message.written(write)

    async def _preview(self, write: Write) -> None:
        if self._placeholder is None and not self._previewed:
            # Previews have no buttons, so a message with the stop button goes first.
            await self._write_first(self._message.waiting, keep=False)
            return
        await self._target.preview(write.content)
        if self._target.previews:
            self._previewed = True
            self._message.written(write)

    async def _write_first(self, content: Content, *, keep: bool) -> None:
        if self._placeholder is None:
            self._placeholder = await self._send(content)
        else:
            await self._target.edit(self._placeholder, content)
        if keep:
            self._ids[0] = self._placeholder
            self._placeholder = None

    async def _send(self, content: Content) -> str:
        async with self._sending:
            message = await self._target.send(content)
            self._on_message(message)
        return message

    def lost(self, page: int, *, remains: bool) -> None:
        message = self._ids.pop(page, None)
        if message is None:
            message = self._placeholder
            self._placeholder = None
        if remains and message is not None:
            self._remains.append(message)
        self._message.lost(page)
