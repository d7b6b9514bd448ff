"""Conversations in memory: messages linked by replies, with their images, for a limited time and size.

Nothing here is written to disk.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam

from minigpt4_serve.images import EncodedImage, image_url_part

__all__ = [
    "ConversationScope",
    "ConversationStore",
    "MessageKey",
    "Turn",
    "limit_images",
    "limit_turns",
    "merge_turns",
    "to_messages",
]


@dataclass(frozen=True)
class MessageKey:
    """One message of a platform, by ids as text."""

    chat: str
    message: str


@dataclass(frozen=True)
class ConversationScope:
    """One person in one channel of a chat. Each scope has one current conversation."""

    chat: str
    channel: str
    owner: str
    """The person's pseudonym."""


@dataclass(frozen=True)
class Turn:
    """One message as the model sees it."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[EncodedImage, ...] = ()
    owner: str = ""
    """Pseudonym of the person who asked, also for answers."""
    parent: MessageKey | None = None
    spoiler: bool = False
    authors: frozenset[str] = frozenset()
    """Pseudonyms of the authors of quoted images, who may have them deleted, too."""
    answers: tuple[MessageKey, ...] = ()
    """The messages that answer this question; a new answer replaces them."""


class ConversationStore:
    """Recent turns by message.

    A turn expires ``lifetime_s`` after it was last read. ``clock`` returns seconds.
    """

    def __init__(
        self,
        *,
        lifetime_s: float,
        max_bytes: int,
        max_turns: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifetime_s = lifetime_s
        self._max_bytes = max_bytes
        self._max_turns = max_turns
        self._clock = clock
        self._turns: OrderedDict[MessageKey, tuple[float, Turn]] = OrderedDict()  # least recently used first
        self._latest: dict[ConversationScope, MessageKey] = {}
        self.image_bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def put(self, key: MessageKey, turn: Turn) -> None:
        """Store a turn, evicting the least recently used ones above the limits."""
        self.drop(key)
        self._turns[key] = (self._clock(), turn)
        self.image_bytes += _image_bytes(turn)
        self.prune()

    def get(self, key: MessageKey) -> Turn | None:
        """Return a turn and renew its lifetime."""
        self.prune()
        found = self._turns.get(key)
        if found is None:
            return None
        self._turns[key] = (self._clock(), found[1])
        self._turns.move_to_end(key)
        return found[1]

    def drop(self, key: MessageKey) -> None:
        """Delete one turn."""
        if (found := self._turns.pop(key, None)) is not None:
            self.image_bytes -= _image_bytes(found[1])

    def latest(self, scope: ConversationScope) -> MessageKey | None:
        """The last message of the scope's current conversation, if it is still stored."""
        self.prune()
        return self._latest.get(scope)

    def set_latest(self, scope: ConversationScope, key: MessageKey) -> None:
        """Continue from ``key`` when the next question in the scope replies to nothing."""
        self._latest[scope] = key

    def reset(self, scope: ConversationScope) -> None:
        """Begin a new conversation with the next question in the scope."""
        self._latest.pop(scope, None)

    def delete_owner(self, owner: str) -> int:
        """Delete all turns of one person and those that quote their images; returns how many."""
        keys = [key for key, (_, turn) in self._turns.items() if owner in {turn.owner, *turn.authors}]
        for key in keys:
            self.drop(key)
        for scope in [scope for scope in self._latest if scope.owner == owner]:
            del self._latest[scope]
        return len(keys)

    def prune(self) -> None:
        """Delete expired turns and the oldest ones above the limits. Call it regularly, also without questions."""
        expired = self._clock() - self._lifetime_s
        pruned = False
        while self._turns:
            key, (used, _) = next(iter(self._turns.items()))
            is_over_limit = self.image_bytes > self._max_bytes or len(self._turns) > self._max_turns
            if used > expired and not is_over_limit:
                break
            self.drop(key)
            pruned = True
        if pruned:
            self._latest = {scope: key for scope, key in self._latest.items() if key in self._turns}


def merge_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Merge adjacent turns of one role: all their images, and the last one's text. Oldest first."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            last = merged[-1]
            merged[-1] = replace(turn, text=turn.text or last.text, images=(*last.images, *turn.images))
        else:
            merged.append(turn)
    # A conversation begins with a question; an answer without its question is no context for the model.
    return merged[1:] if merged and merged[0].role == "assistant" else merged


def limit_images(turns: Sequence[Turn], limit: int) -> tuple[list[Turn], int]:
    """Keep the newest ``limit`` images; returns the turns and the number of images left out."""
    kept: list[Turn] = []
    left = limit
    for turn in reversed(turns):
        images = turn.images[:left] if turn is turns[-1] else turn.images[max(0, len(turn.images) - left) :]
        left -= len(images)
        kept.append(replace(turn, images=images))
    kept.reverse()
    return kept, sum(len(turn.images) for turn in turns) - (limit - left)


def limit_turns(turns: Sequence[Turn], limit: int) -> list[Turn]:
    """Keep at most the newest ``limit`` turns, beginning with a question, which also gets the dropped turns' images."""
    kept = list(turns[-limit:])
    first = next((index for index, turn in enumerate(kept) if turn.role == "user"), None)
    if first is None:
        return kept
    dropped = [*turns[:-limit], *kept[:first]]
    images = tuple(image for turn in dropped for image in turn.images)
    return [replace(kept[first], images=(*images, *kept[first].images)), *kept[first + 1 :]]


def to_messages(turns: Sequence[Turn], system_prompt: str | None = None) -> list[ChatCompletionMessageParam]:
    """Convert turns to OpenAI's messages, images as ``data:`` URLs before the text.

    If several people asked, each message has a ``name`` (``user_1``, ``user_2`` …) instead of the real one.
    """
    owners = list(dict.fromkeys(turn.owner for turn in turns if turn.role == "user"))
    messages: list[ChatCompletionMessageParam] = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    for turn in turns:
        if turn.role == "assistant":
            messages.append({"role": "assistant", "content": turn.text})
            continue
        content: list[ChatCompletionContentPartParam] = [image_url_part(image.data) for image in turn.images]
        content.append({"type": "text", "text": turn.text})
        if len(owners) > 1:
            messages.append({"role": "user", "content": content, "name": f"user_{owners.index(turn.owner) + 1}"})
        else:
            messages.append({"role": "user", "content": content})
    return messages


def _image_bytes(turn: Turn) -> int:
    return sum(len(image.data) for image in turn.images)
