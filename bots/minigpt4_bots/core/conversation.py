"""Conversations in memory: messages linked by replies, with their pictures, for a limited time and size.

Knows ids, words and encoded pictures; no platform and no network. Nothing here is ever written to disk.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam

from minigpt4_serve.images import EncodedImage, image_url_part

__all__ = [
    "Memory",
    "MessageKey",
    "Place",
    "Turn",
    "keep_newest_pictures",
    "keep_newest_words",
    "merge_turns",
    "to_messages",
]


@dataclass(frozen=True)
class MessageKey:
    """One message of a platform: ids as text."""

    chat: str
    message: str


@dataclass(frozen=True)
class Place:
    """Where one person talks: conversations of different people, chats or topics are never mixed."""

    chat: str
    channel: str
    owner: str
    """The person's pseudonym."""


@dataclass(frozen=True)
class Turn:
    """One message as the model will see it."""

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[EncodedImage, ...] = ()
    owner: str = ""
    """The pseudonym of who asked, also for answers."""
    parent: MessageKey | None = None
    spoiler: bool = False
    authors: frozenset[str] = frozenset()
    """Pseudonyms of others whose pictures these are: they may have them forgotten, too."""
    answers: tuple[MessageKey, ...] = ()
    """The messages that answer this question, to be written anew if it is asked again."""


class Memory:
    """What was said lately. ``clock`` gives seconds; a turn lives ``lifetime_s`` after it was last looked at."""

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
        self._turns: OrderedDict[MessageKey, tuple[float, Turn]] = OrderedDict()  # the longest untouched first
        self._latest: dict[Place, MessageKey] = {}
        self.picture_bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def put(self, key: MessageKey, turn: Turn) -> None:
        """Remember a turn; the oldest ones make room."""
        self.drop(key)
        self._turns[key] = (self._clock(), turn)
        self.picture_bytes += _size(turn)
        self.prune()

    def get(self, key: MessageKey) -> Turn | None:
        """The turn, which lives on for another lifetime."""
        self.prune()
        found = self._turns.get(key)
        if found is None:
            return None
        self._turns[key] = (self._clock(), found[1])
        self._turns.move_to_end(key)
        return found[1]

    def drop(self, key: MessageKey) -> None:
        """Forget one turn."""
        if (found := self._turns.pop(key, None)) is not None:
            self.picture_bytes -= _size(found[1])

    def latest(self, place: Place) -> MessageKey | None:
        """The end of the conversation that this person had here last, if it's still known."""
        self.prune()
        return self._latest.get(place)

    def set_latest(self, place: Place, key: MessageKey) -> None:
        """A question at ``place`` that replies to nothing goes on from ``key``."""
        self._latest[place] = key

    def reset(self, place: Place) -> None:
        """The next question at ``place`` begins a new conversation."""
        self._latest.pop(place, None)

    def forget(self, owner: str) -> int:
        """Drop everything of one person; returns how many turns that were."""
        theirs = [key for key, (_, turn) in self._turns.items() if owner in {turn.owner, *turn.authors}]
        for key in theirs:
            self.drop(key)
        for place in [place for place in self._latest if place.owner == owner]:
            del self._latest[place]
        return len(theirs)

    def prune(self) -> None:
        """Drop what is too old or too much. Call it now and then: nobody may ask for hours."""
        dead = self._clock() - self._lifetime_s
        pruned = False
        while self._turns:
            key, (touched, _) = next(iter(self._turns.items()))
            over = self.picture_bytes > self._max_bytes or len(self._turns) > self._max_turns
            if touched > dead and not over:
                break
            self.drop(key)
            pruned = True
        if pruned:
            self._latest = {place: key for place, key in self._latest.items() if key in self._turns}


def merge_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbours of one role become one: all their pictures, the last one's words. Oldest first."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            last = merged[-1]
            merged[-1] = replace(turn, text=turn.text or last.text, pictures=(*last.pictures, *turn.pictures))
        else:
            merged.append(turn)
    # A conversation begins with a question: an answer whose question is gone tells the model nothing.
    return merged[1:] if merged and merged[0].role == "assistant" else merged


def keep_newest_pictures(turns: Sequence[Turn], most: int) -> tuple[list[Turn], int]:
    """The turns with at most that many pictures in all, and how many older ones were left out."""
    kept: list[Turn] = []
    left = most
    for turn in reversed(turns):
        pictures = turn.pictures[:left] if turn is turns[-1] else turn.pictures[max(0, len(turn.pictures) - left) :]
        left -= len(pictures)
        kept.append(replace(turn, pictures=pictures))
    kept.reverse()
    return kept, sum(len(turn.pictures) for turn in turns) - (most - left)


def keep_newest_words(turns: Sequence[Turn], most: int) -> list[Turn]:
    """At most that many of the turns, from a question on; it shows the pictures of those that were cut, too."""
    kept = list(turns[-most:])
    first = next((place for place, turn in enumerate(kept) if turn.role == "user"), None)
    if first is None:
        return kept
    cut = [*turns[:-most], *kept[:first]]
    pictures = tuple(picture for turn in cut for picture in turn.pictures)
    return [replace(kept[first], pictures=(*pictures, *kept[first].pictures)), *kept[first + 1 :]]


def to_messages(turns: Sequence[Turn], system_prompt: str | None = None) -> list[ChatCompletionMessageParam]:
    """OpenAI's messages, pictures as ``data:`` URLs before the words.

    If several people asked, each message says by ``name`` (``user_1``, ``user_2`` …) whose it is; real names stay here.
    """
    owners = list(dict.fromkeys(turn.owner for turn in turns if turn.role == "user"))
    messages: list[ChatCompletionMessageParam] = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    for turn in turns:
        if turn.role == "assistant":
            messages.append({"role": "assistant", "content": turn.text})
            continue
        content: list[ChatCompletionContentPartParam] = [image_url_part(picture.data) for picture in turn.pictures]
        content.append({"type": "text", "text": turn.text})
        if len(owners) > 1:
            messages.append({"role": "user", "content": content, "name": f"user_{owners.index(turn.owner) + 1}"})
        else:
            messages.append({"role": "user", "content": content})
    return messages


def _size(turn: Turn) -> int:
    return sum(len(picture.data) for picture in turn.pictures)
