"""What adapters tell the core of a message: the question, its files, and messages that it replies to.

Only data; files and messages that aren't here yet are callables of the adapter.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.conversation import MessageKey

__all__ = ["Attachment", "NotFetched", "Question", "Quoted", "TooLarge"]


class TooLarge(Exception):
    """The platform won't hand out a file of this size, or it has more bytes than were asked for."""


class NotFetched(Exception):
    """The file couldn't be downloaded."""


@dataclass(frozen=True)
class Attachment:
    """A file of a message. ``load(most)`` downloads it, at most so many bytes; raises TooLarge or NotFetched."""

    load: Callable[[int], Awaitable[bytes]]
    size: int | None = None
    spoiler: bool = False
    unusable: Literal["not_a_picture", "moving"] | None = None
    """Known not to be a still picture without looking: a video, an animated sticker, a text file."""


@dataclass(frozen=True)
class Quoted:
    """A message that isn't in memory, as the platform gives it."""

    role: Literal["user", "assistant"]
    """``assistant`` for the bot's own messages."""
    text: str = ""
    attachments: tuple[Attachment, ...] = ()
    parent: MessageKey | None = None
    author: str = ""
    """The platform's id of who wrote it."""


@dataclass(frozen=True)
class Question:
    """What somebody asks with one message (or one album of messages)."""

    asker: Asker
    key: MessageKey
    """The message that asks; the first one of an album."""
    text: str = ""
    """Without the bot's name or the command; empty means the default question."""
    attachments: tuple[Attachment, ...] = ()
    parent: MessageKey | None = None
    """The message it replies to. None: the asker's latest conversation here goes on, unless pictures come along."""
    fetch: Callable[[MessageKey], Awaitable[Quoted | None]] | None = None
    """Looks up a message that isn't in memory."""
    keeps_pictures: bool = False
    """An edited question whose pictures the platform doesn't tell again: those in memory stay."""
    place: str = ""
    """JSON or other text from which the adapter finds the chat again after a restart; stored sealed."""
