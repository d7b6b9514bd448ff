"""The order of writes under a platform's rate limits per chat and overall, by priority.

``RateLimiter`` decides without a clock of its own; ``SendQueue`` lets coroutines wait for their turn.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["PendingSend", "Priority", "Rate", "RateLimiter", "SendQueue"]


class Priority(IntEnum):
    """The priority of a write; lower values go first."""

    FIRST = 0
    """The placeholder of an answer, and short replies."""
    ANSWER = 1
    """Text that stays."""
    PROGRESS = 2
    """Text that will be replaced; may be late or left out."""
    CLEANUP = 3
    """Deleting what is no longer needed."""


@dataclass(frozen=True)
class Rate:
    """At most ``count`` writes within any ``per_s`` seconds."""

    count: int
    per_s: float
    progress_only: bool = False
    """Applies to progress only, to spread it evenly; text that stays is exempt."""


_SLOW_WRITE_S = 5.0
"""A write that takes longer no longer blocks others."""


class _Window:
    """Completed and in-flight writes under some rates. Callers pass the current time.

    The platform counts a write when it arrives, at any time between sending and reply. A write in flight therefore
    counts as written now, and a completed one as written at its reply, so that the rates hold for any latency.
    """

    def __init__(self, rates: Sequence[Rate]) -> None:
        self._rates = rates
        self._completed: deque[float] = deque(maxlen=max((rate.count for rate in rates), default=1))
        self._in_flight: dict[int, float] = {}
        self.paused_until = 0.0

    def ready_at(self, priority: Priority) -> float:
        """The earliest time at which a write of that priority keeps all rates."""
        ready = self.paused_until
        for rate in self._rates:
            if rate.progress_only and priority < Priority.PROGRESS:
                continue
            # Progress leaves a third of the allowance to text that stays.
            count = rate.count - rate.count // 3 if priority >= Priority.PROGRESS else rate.count
            if len(self._completed) + len(self._in_flight) >= count:
                until = [at + rate.per_s for at in self._completed]
                until += [at + _SLOW_WRITE_S for at in self._in_flight.values()]
                ready = max(ready, sorted(until)[-count])
        return ready

    def start(self, number: int, now: float) -> None:
        self._in_flight[number] = now

    def complete(self, number: int, now: float) -> None:
        if self._in_flight.pop(number, None) is not None:
            self._completed.append(now)

    def is_idle(self, now: float) -> bool:
        longest = max((rate.per_s for rate in self._rates), default=0.0)
        is_quiet = not self._in_flight and now > self.paused_until
        return is_quiet and (not self._completed or now > self._completed[-1] + longest)


@dataclass(eq=False)
class PendingSend:
    """A queued write."""

    chat: str
    priority: Priority
    number: int
    granted: asyncio.Future[None] | None = None


class RateLimiter:
    """Decides which writes may go now. Has no clock: callers pass the time.

    A chat's writes wait for the rates of that chat and for the overall ones, never for another chat's. Among the chats
    that are ready the highest priority goes first, then the oldest write.
    """

    def __init__(self, overall: Sequence[Rate], rates_for: Callable[[str], Sequence[Rate]]) -> None:
        self._overall = _Window(overall)
        self._rates_for = rates_for
        self._windows: dict[str, _Window] = {}
        self._waiting: dict[str, list[PendingSend]] = {}
        self._number = 0

    def enqueue(self, chat: str, priority: Priority) -> PendingSend:
        """Queue a write to a chat."""
        self._number += 1
        pending = PendingSend(chat, priority, self._number)
        self._waiting.setdefault(chat, []).append(pending)
        return pending

    def cancel(self, pending: PendingSend) -> None:
        """Remove a write from the queue. Granted writes have already left it."""
        waiting = self._waiting.get(pending.chat, [])
        if pending in waiting:
            waiting.remove(pending)
        if not waiting:
            self._waiting.pop(pending.chat, None)

    def pause(self, chat: str, until: float) -> None:
        """Grant no writes to the chat until that time."""
        window = self._window(chat)
        window.paused_until = max(window.paused_until, until)

    def done(self, pending: PendingSend, now: float) -> None:
        """Record that a granted write ended, successfully or not."""
        self._window(pending.chat).complete(pending.number, now)
        self._overall.complete(pending.number, now)

    def grant(self, now: float) -> list[PendingSend]:
        """Remove the writes that may go now from the queue. Each needs a call of ``done``."""
        granted: list[PendingSend] = []
        if self._overall.ready_at(Priority.FIRST) > now:
            return granted
        ready = [pending for at, pending in self._heads() if at <= now]
        for pending in sorted(ready, key=_order):
            if self._overall.ready_at(pending.priority) > now:
                break  # the rest has no higher priority
            self.cancel(pending)
            self._window(pending.chat).start(pending.number, now)
            self._overall.start(pending.number, now)
            granted.append(pending)
        if granted:
            self._drop_idle_windows(now)
        return granted

    def next_at(self) -> float | None:
        """When to call ``grant`` again; None if the queue is empty."""
        soonest: dict[Priority, float] = {}
        for at, pending in self._heads():
            soonest[pending.priority] = min(at, soonest.get(pending.priority, at))
        return min((max(at, self._overall.ready_at(priority)) for priority, at in soonest.items()), default=None)

    def _heads(self) -> list[tuple[float, PendingSend]]:
        """The first write of each chat with the time at which its chat is ready."""
        heads = [min(waiting, key=_order) for waiting in self._waiting.values()]
        return [(self._window(head.chat).ready_at(head.priority), head) for head in heads]

    def _window(self, chat: str) -> _Window:
        if chat not in self._windows:
            self._windows[chat] = _Window(self._rates_for(chat))
        return self._windows[chat]

    def _drop_idle_windows(self, now: float) -> None:
        if len(self._windows) > 1000:
            self._windows = {
                chat: window
                for chat, window in self._windows.items()
                if chat in self._waiting or not window.is_idle(now)
            }


def _order(pending: PendingSend) -> tuple[Priority, int]:
    return pending.priority, pending.number


class SendQueue:
    """``RateLimiter`` on the event loop's clock."""

    def __init__(self, overall: Sequence[Rate], rates_for: Callable[[str], Sequence[Rate]]) -> None:
        self._limiter = RateLimiter(overall, rates_for)
        self._timer: asyncio.TimerHandle | None = None

    def enqueue(self, chat: str, priority: Priority) -> PendingSend:
        """Queue a write to a chat; await ``wait`` before writing."""
        pending = self._limiter.enqueue(chat, priority)
        pending.granted = asyncio.get_running_loop().create_future()
        self._grant()
        return pending

    async def wait(self, pending: PendingSend) -> None:
        """Return when the write may go; call ``done`` after it. Cancellation removes it from the queue."""
        assert pending.granted is not None
        try:
            await pending.granted
        except asyncio.CancelledError:
            if pending.granted.cancelled():
                self._limiter.cancel(pending)
            else:
                self.done(pending)
            raise

    @contextlib.asynccontextmanager
    async def slot(self, chat: str, priority: Priority) -> AsyncIterator[None]:
        """Wait for the turn; the body is the write."""
        pending = self.enqueue(chat, priority)
        await self.wait(pending)
        try:
            yield
        finally:
            self.done(pending)

    def raise_priority(self, pending: PendingSend, priority: Priority) -> None:
        """Raise the priority of a queued write; never lowers it."""
        if priority < pending.priority:
            pending.priority = priority
            self._grant()

    def pause(self, chat: str, seconds: float) -> None:
        """Grant no writes to the chat for that long."""
        self._limiter.pause(chat, asyncio.get_running_loop().time() + seconds)

    def done(self, pending: PendingSend) -> None:
        """Record that the platform replied to the write, or that it was abandoned."""
        self._limiter.done(pending, asyncio.get_running_loop().time())
        self._grant()

    def _grant(self) -> None:
        loop = asyncio.get_running_loop()
        for pending in self._limiter.grant(loop.time()):
            assert pending.granted is not None
            if pending.granted.done():  # canceled, but not yet removed
                self._limiter.done(pending, loop.time())
            else:
                pending.granted.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self._limiter.next_at()) is not None:
            self._timer = loop.call_at(max(at, loop.time() + 0.001), self._grant)
