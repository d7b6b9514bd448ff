"""The events of an answer, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Completed", "Event", "Queued", "Retrying", "TextDelta"]


@dataclass(frozen=True)
class Queued:
    """The request waits in the server's queue behind ``ahead`` others; ``expected_s`` is the expected wait."""

    ahead: int
    expected_s: float | None = None


@dataclass(frozen=True)
class Retrying:
    """The server refused for now; the client sends the request again in ``retry_in_s`` seconds."""

    retry_in_s: float


@dataclass(frozen=True)
class TextDelta:
    """The next characters of the answer."""

    text: str


@dataclass(frozen=True)
class Completed:
    """The answer is complete.

    Attributes:
        reason: ``stop``, ``length`` or another of the server's finish reasons.
        prompt_tokens, cached_tokens, completion_tokens: usage; None if the server doesn't report it.
        timings: seconds by stage, as minigpt4-serve measures them.
        dropped_messages: number of oldest messages whose text didn't fit the model's context.
    """

    reason: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    timings: Mapping[str, float] | None = None
    dropped_messages: int = 0


Event = Queued | Retrying | TextDelta | Completed
