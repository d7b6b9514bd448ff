"""What adapters pass to the core: a question, its files, and messages it replies to. Plain data and callables."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from minigpt4_bots.core.access import Requester
from minigpt4_bots.core.conversation import MessageKey

__all__ = ["Attachment", "DownloadFailed", "FileTooLarge", "Question", "QuotedMessage", "Unusable"]


class FileTooLarge(Exception):
    """The platform doesn't serve a file of this size, or the file exceeds the requested limit."""


class DownloadFailed(Exception):
    """The file couldn't be downloaded."""


class Unusable(StrEnum):
    """Why a file can't be used; the value completes the text's name ``left_out.…``."""

    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_a_picture"
    MOVING = "moving"
    NOT_DOWNLOADED = "not_fetched"


@dataclass(frozen=True)
class Attachment:
    """A file of a message.

    ``load(max_bytes)`` downloads it and raises FileTooLarge or DownloadFailed.
    """

    load: Callable[[int], Awaitable[bytes]]
    size: int | None = None
    spoiler: bool = False
    unusable: Unusable | None = None
    """Set if the platform's metadata shows that the file is no still image: a video, a sticker that moves, a text."""


@dataclass(frozen=True)
class QuotedMessage:
    """A message that isn't in memory, as fetched from the platform."""

    role: Literal["user", "assistant"]
    """``assistant`` for the bot's own messages."""
    text: str = ""
    attachments: tuple[Attachment, ...] = ()
    parent: MessageKey | None = None
    author: str = ""
    """The platform's id of the author."""


@dataclass(frozen=True)
class Question:
    """A question asked by one message, or by one album of messages."""

    requester: Requester
    key: MessageKey
    """The message that asks; the first one of an album."""
    text: str = ""
    """Without the bot's name or the command; empty for the default question."""
    attachments: tuple[Attachment, ...] = ()
    parent: MessageKey | None = None
    """The message it replies to. None continues the requester's latest conversation here, unless it brings images."""
    fetch: Callable[[MessageKey], Awaitable[QuotedMessage | None]] | None = None
    """Fetches a message that isn't in memory."""
    keeps_images: bool = False
    """An edited question whose images the platform doesn't send again: those in memory stay."""
    location: str = ""
    """The adapter's serialized location, by which it finds the chat after a restart; stored encrypted."""
