"""Who may write when, under a platform's limits per chat and overall: important writes overtake progress.

``WaitingLine`` decides without a clock; ``Traffic`` lets coroutines wait for their turn. Knows no platform.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Rate", "Ticket", "Traffic", "Urgency", "WaitingLine"]


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
