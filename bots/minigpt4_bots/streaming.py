"""When to write what while an answer grows: pages, pacing, delivery. Knows no platform and no server.

Three parts, the first two without clock or input/output of their own:

* ``Pages``: text → messages of limited length, cut at the borders of paragraphs, code or sentences.
* ``Traffic``: who may write when, under limits per chat and overall; important writes overtake progress.
* ``deliver``: drives one answer through both onto a ``Stage``; the complete text always arrives.
"""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

from minigpt4_bots.markup import fence_at, spoiler_is_open

__all__ = [
    "Buttons",
    "ChatGone",
    "Content",
    "Display",
    "MessageGone",
    "Pages",
    "Rate",
    "Stage",
    "Ticket",
    "Traffic",
    "TryLater",
    "Urgency",
    "WaitingLine",
    "Write",
    "deliver",
]

_log = logging.getLogger(__name__)


class Pages:
    """A growing Markdown text as messages. Once a page is settled it never changes again.

    ``measure`` gives a page's length as the platform will count it after rendering.
    """

    def __init__(self, limit: int, measure: Callable[[str], int]) -> None:
        assert limit >= 64, "a page must hold a sentence"
        self._limit = limit
        self._measure = measure
        self.settled: list[str] = []
        self.open = ""
        self._certain = 0
        """The open page surely fits while it has no more characters than this: measuring each piece would be dear."""

    def feed(self, text: str) -> None:
        """Append to the text."""
        self.open += text
        while len(self.open) > self._certain:
            length = self._measure(self.open)
            if length <= self._limit:
                # A character becomes at most four units; a bracket may change what stands before it by a little.
                self._certain = len(self.open) + max(0, (self._limit - length - 64) // 4)
                return
            page, self.open = self._cut(self.open)
            self.settled.append(page)
            self._certain = 0

    def __len__(self) -> int:
        return len(self.settled) + 1

    def __getitem__(self, index: int) -> str:
        return self.open if index == len(self.settled) else self.settled[index]

    def _cut(self, text: str) -> tuple[str, str]:
        most = min(len(text) - 1, self._limit)
        while True:
            cut = _best_border(text, most)
            page, rest = _close(text, cut)
            excess = self._measure(page) - self._limit
            # A rest as long as the whole (reopened code that holds nothing else) would never end.
            if (excess <= 0 and len(rest) < len(text)) or most <= 1:
                return page, rest
            # In proportion: the measure may count a character twice, or add what rendering adds.
            most = max(1, min(cut - 1, cut * self._limit // (self._limit + max(0, excess))))


_BLOCK = re.compile(r"\n\s*\n|\n(?= {0,3}(?:```|~~~))|(?<=```)\n")
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]*_]*\s+|[。！？；][”’）」』]*|\n")
_SPACE = re.compile(r"\s+|[，、：]")


def _best_border(text: str, most: int) -> int:
    """Where to cut, at most ``most`` characters in: the last border of the best kind in the window's second half."""
    least = max(1, most // 2)
    window = text[:most]
    for border in (_BLOCK, _SENTENCE, _SPACE):
        ends = [found.end() for found in border.finditer(window) if found.end() >= least]
        if border is _BLOCK:
            ends = [end for end in ends if fence_at(window[:end].rstrip("\n")) is None]
        if border is _SENTENCE:
            # A sentence's end within code means nothing; a line's end does.
            ends = [end for end in ends if window[end - 1] == "\n" or fence_at(window[:end]) is None]
        if ends:
            return ends[-1]
    while most > least and not _may_cut(text, most):
        most -= 1
    return most


def _may_cut(text: str, at: int) -> bool:
    """Not inside of what is seen as one character: joiners, variation selectors, skin tones, combining marks, flags;
    nor of a mark made of several.
    """
    joining = re.compile("[\u200d\ufe0e\ufe0f\u0300-\u036f\U0001f3fb-\U0001f3ff\U0001f1e6-\U0001f1ff]")
    mark = text[at] == text[at - 1] and text[at] in "`|~*_"
    return not (mark or joining.match(text[at]) or text[at - 1] == "\u200d")


def _close(text: str, cut: int) -> tuple[str, str]:
    """The page up to the cut with its code and spoiler closed, and the rest with both opened again."""
    line = text.rfind("\n", 0, cut) + 1
    # What looks like code that begins in this line may be none: its line goes on.
    is_beginning = fence_at(text[:line]) is None and fence_at(text[:cut]) is not None
    if is_beginning and text[:line].strip():
        cut, is_beginning = line, False
    page, rest = text[:cut], text[cut:]
    if not is_beginning and (fence := fence_at(page)) is not None:
        mark = fence[: len(fence) - len(fence.lstrip(fence[0]))]
        return f"{page.rstrip()}\n{mark}", f"{fence}\n{rest}"
    if spoiler_is_open(page):
        return f"{page.rstrip()}||", f"||{rest.lstrip()}"
    return page.rstrip(), rest.lstrip("\n ")


class Urgency(IntEnum):
    """Whose turn is first when not all may write."""

    FIRST = 0
    """The first sign of life, and short replies."""
    ANSWER = 1
    """Text that stays."""
    PROGRESS = 2
    """Text that will be replaced; may be late or left out."""
    TIDY = 3
    """Removing what is no longer needed."""


@dataclass(frozen=True)
class Rate:
    """At most ``count`` writes within any ``per_s`` seconds."""

    count: int
    per_s: float
    progress_only: bool = False
    """Texts that stay needn't keep it: it only spreads progress evenly."""


_LONG_ON_ITS_WAY_S = 5.0
"""A write that takes longer has met trouble of its own, which others needn't wait for."""


class _Window:
    """Writes under some rates: when the last ones arrived, and which are on their way. Times are given in.

    The platform counts a write when it arrives, which may be any time between its sending and the platform's reply. So
    one that is on its way counts as written now, and one that was replied to as written then: however late and bunched
    they arrive, the rates hold.
    """

    def __init__(self, rates: Sequence[Rate]) -> None:
        self._rates = rates
        self._arrived: deque[float] = deque(maxlen=max((rate.count for rate in rates), default=1))
        self._sent: dict[int, float] = {}
        self.held_until = 0.0

    def ready_at(self, urgency: Urgency) -> float:
        """The earliest time at which a write of that urgency keeps all rates."""
        ready = self.held_until
        for rate in self._rates:
            if rate.progress_only and urgency < Urgency.PROGRESS:
                continue
            # Progress leaves some of a larger allowance to the texts that stay.
            count = rate.count - rate.count // 3 if urgency >= Urgency.PROGRESS else rate.count
            if len(self._arrived) + len(self._sent) >= count:
                until = [at + rate.per_s for at in self._arrived]
                until += [at + _LONG_ON_ITS_WAY_S for at in self._sent.values()]
                ready = max(ready, sorted(until)[-count])
        return ready

    def take(self, number: int, now: float) -> None:
        self._sent[number] = now

    def arrived(self, number: int, now: float) -> None:
        if self._sent.pop(number, None) is not None:
            self._arrived.append(now)

    def is_idle(self, now: float) -> bool:
        longest = max((rate.per_s for rate in self._rates), default=0.0)
        is_quiet = not self._sent and now > self.held_until
        return is_quiet and (not self._arrived or now > self._arrived[-1] + longest)


@dataclass(eq=False)
class Ticket:
    """One wish to write."""

    chat: str
    urgency: Urgency
    number: int
    granted: asyncio.Future[None] | None = None


class WaitingLine:
    """Decides who writes next. Pure: every method is told the time.

    A chat's tickets wait for that chat's rates and for the overall ones, never for another chat's. Among those whose
    chat is ready the most urgent goes first, then the oldest.
    """

    def __init__(self, overall: Sequence[Rate], rates_of: Callable[[str], Sequence[Rate]]) -> None:
        self._overall = _Window(overall)
        self._rates_of = rates_of
        self._windows: dict[str, _Window] = {}
        self._waiting: dict[str, list[Ticket]] = {}
        self._number = 0

    def join(self, chat: str, urgency: Urgency) -> Ticket:
        """Wish to write to a chat."""
        self._number += 1
        ticket = Ticket(chat, urgency, self._number)
        self._waiting.setdefault(chat, []).append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The wish is gone. Granted tickets have left the line already."""
        tickets = self._waiting.get(ticket.chat, [])
        if ticket in tickets:
            tickets.remove(ticket)
        if not tickets:
            self._waiting.pop(ticket.chat, None)

    def hold(self, chat: str, until: float) -> None:
        """The platform wants silence in that chat."""
        window = self._window(chat)
        window.held_until = max(window.held_until, until)

    def arrived(self, ticket: Ticket, now: float) -> None:
        """What was granted has been written, or never will be."""
        self._window(ticket.chat).arrived(ticket.number, now)
        self._overall.arrived(ticket.number, now)

    def grant(self, now: float) -> list[Ticket]:
        """Those who may write now, and have left the line; ``arrived`` must be told of each of them."""
        granted: list[Ticket] = []
        if self._overall.ready_at(Urgency.FIRST) > now:
            return granted
        ready = [ticket for at, ticket in self._heads() if at <= now]
        for ticket in sorted(ready, key=lambda ticket: (ticket.urgency, ticket.number)):
            if self._overall.ready_at(ticket.urgency) > now:
                break  # the others are no more urgent
            self.leave(ticket)
            self._window(ticket.chat).take(ticket.number, now)
            self._overall.take(ticket.number, now)
            granted.append(ticket)
        if granted:
            self._forget_idle(now)
        return granted

    def next_at(self) -> float | None:
        """When to call ``grant`` again; None if nobody waits."""
        soonest: dict[Urgency, float] = {}
        for at, ticket in self._heads():
            soonest[ticket.urgency] = min(at, soonest.get(ticket.urgency, at))
        return min((max(at, self._overall.ready_at(urgency)) for urgency, at in soonest.items()), default=None)

    def _heads(self) -> list[tuple[float, Ticket]]:
        """The first of each chat with the time at which its chat is ready."""
        heads = [min(tickets, key=lambda ticket: (ticket.urgency, ticket.number)) for tickets in self._waiting.values()]
        return [(self._window(head.chat).ready_at(head.urgency), head) for head in heads]

    def _window(self, chat: str) -> _Window:
        if chat not in self._windows:
            self._windows[chat] = _Window(self._rates_of(chat))
        return self._windows[chat]

    def _forget_idle(self, now: float) -> None:
        if len(self._windows) > 1000:
            self._windows = {
                chat: window
                for chat, window in self._windows.items()
                if chat in self._waiting or not window.is_idle(now)
            }


class Traffic:
    """``WaitingLine`` on the event loop's clock."""

    def __init__(self, overall: Sequence[Rate], rates_of: Callable[[str], Sequence[Rate]]) -> None:
        self._line = WaitingLine(overall, rates_of)
        self._timer: asyncio.TimerHandle | None = None

    def join(self, chat: str, urgency: Urgency) -> Ticket:
        """Wish to write to a chat; await ``turn`` before doing so."""
        ticket = self._line.join(chat, urgency)
        ticket.granted = asyncio.get_running_loop().create_future()
        self._grant()
        return ticket

    async def turn(self, ticket: Ticket) -> None:
        """Return when the ticket's turn has come; ``arrived`` must follow. Cancelled, the ticket leaves the line."""
        assert ticket.granted is not None
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if ticket.granted.cancelled():
                self._line.leave(ticket)
            else:
                self.arrived(ticket)
            raise

    @contextlib.asynccontextmanager
    async def slot(self, chat: str, urgency: Urgency) -> AsyncIterator[None]:
        """Wait for the turn; the block is the write."""
        ticket = self.join(chat, urgency)
        await self.turn(ticket)
        try:
            yield
        finally:
            self.arrived(ticket)

    def hurry(self, ticket: Ticket, urgency: Urgency) -> None:
        """What the ticket is for has become more urgent."""
        if urgency < ticket.urgency:
            ticket.urgency = urgency
            self._grant()

    def hold(self, chat: str, seconds: float) -> None:
        """Nobody writes to that chat for so long."""
        self._line.hold(chat, asyncio.get_running_loop().time() + seconds)

    def arrived(self, ticket: Ticket) -> None:
        """The platform has answered the write that the ticket was for, or it isn't done after all."""
        self._line.arrived(ticket, asyncio.get_running_loop().time())
        self._grant()

    def _grant(self) -> None:
        loop = asyncio.get_running_loop()
        for ticket in self._line.grant(loop.time()):
            assert ticket.granted is not None
            if ticket.granted.done():  # cancelled, but didn't get round to leaving
                self._line.arrived(ticket, loop.time())
            else:
                ticket.granted.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self._line.next_at()) is not None:
            self._timer = loop.call_at(max(at, loop.time() + 0.001), self._grant)


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
) -> list[str]:
    """Write until the display is finished and all of it is shown; returns the ids of the messages that stay.

    Args:
        display: fed by somebody else meanwhile.
        stage: where to write.
        traffic: shared by all answers of the platform.
        chat: whose rates hold.
        first: a message to write into instead of sending a new one.
        on_message: told the id of each new message at once.

    Raises:
        ChatGone: nothing can be written there any more, or the platform refused for 15 minutes.
    """
    delivery = _Delivery(display, stage, first, on_message)
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

    def __init__(self, display: Display, stage: Stage, first: str | None, on_message: Callable[[str], None]) -> None:
        self._display = display
        self._stage = stage
        self._on_message = on_message
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
            self._message_of[write.page] = message = await self._stage.send(write.content)
            self._on_message(message)
        self._display.written(write)

    async def _write_first(self, content: Content, *, keep: bool) -> None:
        if self._placeholder is None:
            self._placeholder = await self._stage.send(content)
            self._on_message(self._placeholder)
        else:
            await self._stage.edit(self._placeholder, content)
        if keep:
            self._message_of[0], self._placeholder = self._placeholder, None

    def lost(self, page: int, *, remains: bool) -> None:
        message = self._message_of.pop(page, None)
        if message is None:
            message, self._placeholder = self._placeholder, None
        if remains and message is not None:
            self._remains.append(message)
        self._display.lost(page)
