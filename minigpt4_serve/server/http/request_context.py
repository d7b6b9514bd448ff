"""What is known of the request that is being answered, for whoever logs and counts it. Knows neither HTTP nor Ray."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from minigpt4_serve.protocol import Timings, Usage

__all__ = ["RequestContext", "current", "note_answer"]


@dataclass
class RequestContext:
    """Of one request: when it came and, once it is answered, what that took."""

    began: float = field(default_factory=time.monotonic)
    usage: Usage | None = None
    timings: Timings | None = None


current: ContextVar[RequestContext | None] = ContextVar("minigpt4_request", default=None)


def note_answer(usage: Usage, timings: Timings) -> None:
    """The engine's sums of an answer join the request's balance, if there is a request."""
    if (balance := current.get()) is not None:
        balance.usage, balance.timings = usage, timings
