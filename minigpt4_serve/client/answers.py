"""Answers about images as typed data, the progress towards them, and a cache of them."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from minigpt4_serve.boxes import Grounding, parse_groundings, plain_text
from minigpt4_serve.client.events import Completed
from minigpt4_serve.client.untrusted_text import delimit, new_mark, sanitize
from minigpt4_serve.errors import InvalidRequest

__all__ = ["AnswerCache", "FoundBox", "Progress", "TokenUsage", "VisionAnswer", "make_answer"]

_MAX_PHRASE_CHARS = 100


class FoundBox(BaseModel):
    """A box in the answer, in percent of the image's width and height; ``phrase``: what is in it, if the model says."""

    model_config = ConfigDict(frozen=True)

    phrase: str | None
    left: int
    top: int
    right: int
    bottom: int

    def describe(self) -> str:
        """One line of text."""
        place = f"{self.left}–{self.right} % from the left, {self.top}–{self.bottom} % from the top"
        return f"{self.phrase or 'box'}: {place}"


class TokenUsage(BaseModel):
    """Tokens of the prompt, of the answer, and of the prompt's part that was cached."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class VisionAnswer(BaseModel):
    """An answer about images.

    Attributes:
        text: the answer without control characters and the notation of boxes, cut to the client's limit.
        model: name of the model that answered.
        digests: the SHA-256 of each image, in order.
        boxes: what the model located, if it writes MiniGPT-v2's notation; phrases are cleaned as the text is, and text
            and boxes in words together stay within the client's limit.
        usage: None if the server doesn't report it.
        timings: seconds by stage, as minigpt4-serve measures them; None from other servers.
        truncated: the answer was cut at a limit of the client or of the server.
        from_cache: the same question about the same images was answered before.
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
    _mark: str = PrivateAttr(default_factory=new_mark)

    def for_model(self) -> str:
        """The answer as another model may read it: between marks of this answer, with boxes in words."""
        lines = [box.describe() for box in self.boxes]
        return delimit("\n".join([self.text, *lines]).strip(), truncated=self.truncated, mark=self._mark)


@dataclass(frozen=True)
class Progress:
    """An event before the answer is complete.

    Attributes:
        text: the next delta of the answer, as the server sent it.
        ahead: number of requests before this one in the server's queue.
        wait_s: seconds until the next try, or expected seconds until the answer begins.
    """

    text: str = ""
    ahead: int | None = None
    wait_s: float | None = None


def make_answer(
    text: str, end: Completed | None, model: str, digests: tuple[str, ...], *, max_chars: int
) -> VisionAnswer:
    """The answer with this text; ``end`` is None if reading stopped before the server's end.

    Raises:
        InvalidRequest: it has neither text nor boxes.
    """
    groundings = parse_groundings(text)
    visible, cut = sanitize(plain_text(text) if groundings else text, max_chars)
    if not visible and not groundings:
        raise InvalidRequest("The vision model had nothing to say to this; ask in other words.")
    boxes, boxes_cut = _found_boxes(groundings, max_chars - len(visible))
    return VisionAnswer(
        text=visible,
        model=model,
        digests=digests,
        boxes=boxes,
        usage=_usage(end) if end else None,
        timings=dict(end.timings) if end and end.timings else None,
        truncated=cut or boxes_cut or end is None or end.reason == "length",
    )


def _found_boxes(groundings: Sequence[Grounding], max_chars: int) -> tuple[tuple[FoundBox, ...], bool]:
    """The first boxes, at least one, that take ``max_chars`` in words; and whether there were more."""
    boxes: list[FoundBox] = []
    for found in groundings:
        # One line each: a line break in a phrase would look like another box.
        phrase = " ".join(sanitize(found.phrase or "", _MAX_PHRASE_CHARS)[0].split()) or None
        for box in found.boxes:
            new = FoundBox(phrase=phrase, left=box.left, top=box.top, right=box.right, bottom=box.bottom)
            max_chars -= len(new.describe()) + 1
            if max_chars < 0 and boxes:
                return tuple(boxes), True
            boxes.append(new)
    return tuple(boxes), False


def _usage(end: Completed) -> TokenUsage | None:
    if end.prompt_tokens is None and end.completion_tokens is None:
        return None
    return TokenUsage(
        prompt_tokens=end.prompt_tokens or 0,
        completion_tokens=end.completion_tokens or 0,
        cached_tokens=end.cached_tokens or 0,
    )


class AnswerCache:
    """The most recently used answers, by images, question and model. Thread-safe; copies and pickles are empty."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[tuple[Any, ...], VisionAnswer] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["AnswerCache"], tuple[int]]:
        return AnswerCache, (self._size,)

    def get(self, key: tuple[Any, ...]) -> VisionAnswer | None:
        """The cached answer, with ``from_cache``; None if there is none."""
        with self._lock:
            if (answer := self._answers.get(key)) is None:
                return None
            self._answers.move_to_end(key)
        return answer.model_copy(update={"from_cache": True})

    def put(self, key: tuple[Any, ...], answer: VisionAnswer) -> None:
        """Add an answer, and evict the least recently used ones."""
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > self._size:
                self._answers.popitem(last=False)
