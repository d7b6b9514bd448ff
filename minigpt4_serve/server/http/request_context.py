"""The usage and the timings of the current request, for the request log and the metrics."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from minigpt4_serve.protocol import Timings, Usage

__all__ = ["RequestContext", "current", "note_answer"]


@dataclass
class RequestContext:
    """One request.

    Attributes:
        began: arrival, in seconds of ``time.monotonic``.
        usage, timings: set when the answer is complete.
    """

    began: float = field(default_factory=time.monotonic)
    usage: Usage | None = None
    timings: Timings | None = None


current: ContextVar[RequestContext | None] = ContextVar("minigpt4_request", default=None)


def note_answer(usage: Usage, timings: Timings) -> None:
    """Set the usage and the timings of the current request, if there is one."""
    if (context := current.get()) is not None:
        context.usage = usage
        context.timings = timings
