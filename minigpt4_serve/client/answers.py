"""What comes back from a vision server: typed answers, progress, and how both are gathered from pieces of any server.

Knows OpenAI's response shape as plain JSON, no HTTP. Of that shape only the words are required: servers leave out
usage, timings, finish reasons, whole lists.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from minigpt4_serve.boxes import parse_groundings, plain_text
from minigpt4_serve.client.words import clean, delimited
from minigpt4_serve.errors import EngineFailed, InvalidRequest

__all__ = ["AnswerCache", "FoundBox", "Gathering", "Progress", "TokenUsage", "VisionAnswer"]


class FoundBox(BaseModel):
    """A thing that the model points at, in percent of the picture's width and height."""

    model_config = ConfigDict(frozen=True)

    phrase: str | None
    left: int
    top: int
    right: int
    bottom: int


class TokenUsage(BaseModel):
    """What the answer cost, in tokens."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class VisionAnswer(BaseModel):
    """An answer about pictures.

    Attributes:
        text: the model's words without control characters and boxes' notation, cut to the client's limit.
        model: who answered.
        digests: the SHA-256 of each picture, in order.
        boxes: where the model said things are, if it speaks MiniGPT-v2's notation.
        usage: None if the server doesn't tell.
        timings: seconds by stage, as minigpt4-serve measures them; None from other servers.
        truncated: there was more, beyond the limit of the client or of the server.
        from_cache: the same question about the same pictures was answered before.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    model: str
    digests: tuple[str, ...]
    boxes: tuple[FoundBox, ...] = ()
    usage: TokenUsage | None = None
    timings: dict[str, float] | None = None
    truncated: bool = False
    from_cache: bool = False

    def for_model(self) -> str:
        """The answer as another model may read it: marked as data, with boxes in words."""
        places = [
            f"{box.phrase or 'box'}: {box.left}–{box.right} % from the left, {box.top}–{box.bottom} % from the top"
            for box in self.boxes
        ]
        return delimited("\n".join([self.text, *places]).strip(), truncated=self.truncated)


@dataclass(frozen=True)
class Progress:
    """Something that happened before the answer is whole.

    Attributes:
        text: the next piece of the answer, as the server sent it.
        ahead: requests that wait before this one.
        wait_s: expected or agreed seconds until the next try or the answer's beginning.
    """

    text: str = ""
    ahead: int | None = None
    wait_s: float | None = None


@dataclass
class Gathering:
    """An answer in the making: pieces of a stream, or one whole completion from a server that doesn't stream."""

    text: str = ""
    usage: TokenUsage | None = None
    timings: dict[str, float] | None = None
    finish_reasons: list[str] = field(default_factory=list)

    def take(self, piece: Mapping[str, Any]) -> str:
        """The words that this piece adds; usage and timings are kept."""
        self.usage = _usage(piece.get("usage")) or self.usage
        self.timings = _timings(piece.get("timings")) or self.timings
        words = ""
        for choice in piece.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or {}
            words += said.get("content") or ""
            self.finish_reasons += filter(None, [choice.get("finish_reason")])
        self.text += words
        return words

    def answer(self, model: str, digests: tuple[str, ...], *, max_chars: int) -> VisionAnswer:
        """The whole answer.

        Raises:
            EngineFailed: the server said nothing and did not finish.
            InvalidRequest: it finished without a word.
        """
        groundings = parse_groundings(self.text)
        words, cut = clean(plain_text(self.text) if groundings else self.text, max_chars)
        if not words and not groundings:
            if not self.finish_reasons:
                raise EngineFailed("The vision server sent no answer; try again later.")
            raise InvalidRequest("The vision model had nothing to say to this; ask in other words.")
        boxes = [
            FoundBox(phrase=found.phrase, left=box.left, top=box.top, right=box.right, bottom=box.bottom)
            for found in groundings
            for box in found.boxes
        ]
        return VisionAnswer(
            text=words,
            model=model,
            digests=digests,
            boxes=tuple(boxes),
            usage=self.usage,
            timings=self.timings,
            truncated=cut or "length" in self.finish_reasons,
        )


class AnswerCache:
    """The latest answers, by pictures, question and model. May be asked from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[tuple[Any, ...], VisionAnswer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> VisionAnswer | None:
        """The answer, marked as remembered."""
        with self._lock:
            if (answer := self._answers.get(key)) is None:
                return None
            self._answers.move_to_end(key)
        return answer.model_copy(update={"from_cache": True})

    def put(self, key: tuple[Any, ...], answer: VisionAnswer) -> None:
        """Remember it, and forget what was not asked for longest."""
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > self._size:
                self._answers.popitem(last=False)


def _usage(told: object) -> TokenUsage | None:
    if not isinstance(told, Mapping):
        return None
    details = told.get("prompt_tokens_details")
    return TokenUsage(
        prompt_tokens=told.get("prompt_tokens") or 0,
        completion_tokens=told.get("completion_tokens") or 0,
        cached_tokens=(details.get("cached_tokens") or 0) if isinstance(details, Mapping) else 0,
    )


def _timings(told: object) -> dict[str, float] | None:
    if not isinstance(told, Mapping):
        return None
    return {name: float(value) for name, value in told.items() if isinstance(value, (int, float))}
