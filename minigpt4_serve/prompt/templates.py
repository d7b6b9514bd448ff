"""Renders chats as prompt text, with the rules of the original's ``conversation.py``.

Each image is written ``<Img><ImageHere></Img>``. Separators and spaces follow the original exactly: the published
weights were fine-tuned on them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "IMAGE_PLACEHOLDER",
    "ConversationTemplate",
    "Turn",
    "escape_control_tokens",
    "render",
    "truncate_history",
    "truncation_points",
]

IMAGE_PLACEHOLDER = "<ImageHere>"
_IMAGE = f"<Img>{IMAGE_PLACEHOLDER}</Img>"


@dataclass(frozen=True)
class ConversationTemplate:
    """The strings around the turns of a chat.

    Attributes:
        system: the system prompt, without its separator.
        user, assistant: role strings, spaces included.
        separator: follows the system prompt and every complete message.
        stop: strings that end an answer, in addition to the end-of-sequence token.
    """

    system: str
    user: str
    assistant: str
    separator: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """One message of a chat.

    Attributes:
        text: untrusted text.
        images: number of images; they precede the text, as in the original.
    """

    role: Literal["system", "user", "assistant"]
    text: str = ""
    images: int = 0


# Strings with a meaning in any of the templates. A space is inserted instead of removing them: the text stays readable,
# and no user can close a turn, open another role, end the sequence or create image tokens.
_CONTROL_STRINGS = re.compile(
    r"(?<=<)(?=/?(?:Img|ImageHere|s|unk)>|<SYS>|</SYS>)|(?<=\[)(?=/?INST\])|(?<=#)(?=##)|(?<=##)(?=#)"
)


def escape_control_tokens(text: str) -> str:
    """Insert a space into every control string in untrusted text, so that the model reads it as plain text.

    A space also follows a trailing ``#``, which could otherwise merge with the separator. Leading and trailing spaces
    are kept, as in the original.
    """
    text = _CONTROL_STRINGS.sub(" ", text.replace("\r\n", "\n"))
    return text + " " if text.endswith("#") else text


def render(turns: Sequence[Turn], template: ConversationTemplate) -> str:
    """The prompt for the next answer, with one ``<ImageHere>`` per image, in order.

    A leading system turn replaces the template's system prompt. Later system turns become user messages, since the
    family has no other place for them. Each image is a message of its own; text that follows an image is appended to
    its message after a space.
    """
    system = template.system
    if turns and turns[0].role == "system":
        system = escape_control_tokens(turns[0].text.strip())
        turns = turns[1:]
    messages: list[list[str]] = []  # [role, text]
    for turn in turns:
        if turn.role == "assistant":
            # The original strips answers before it stores them. Escaping comes last: it may add a trailing space.
            messages.append([template.assistant, escape_control_tokens(turn.text.strip())])
            continue
        messages += [[template.user, _IMAGE] for _ in range(turn.images)]
        text = escape_control_tokens(turn.text)
        if text.strip():
            if messages and messages[-1][0] == template.user and messages[-1][1].endswith("</Img>"):
                messages[-1][1] += " " + text
            else:
                messages.append([template.user, text])
    history = "".join(role + text + template.separator for role, text in messages)
    return system + (template.separator if system else "") + history + template.assistant


def truncation_points(turns: Sequence[Turn]) -> list[int]:
    """Ends of the exchanges that can be dropped, oldest first.

    A leading system turn and the last user message are never dropped.
    """
    start = _first_exchange(turns)
    last_question = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    ends: list[int] = []
    for i in range(start, last_question):
        if turns[i].role == "assistant" and ends and ends[-1] == i:
            ends[-1] = i + 1  # an answer is dropped with its question
        elif turns[i].text:
            ends.append(i + 1)
    return ends


def truncate_history(turns: Sequence[Turn], end: int) -> tuple[list[Turn], int]:
    """Drop the text of the turns before ``end`` and keep their images: (shorter chat, messages without their text)."""
    start = _first_exchange(turns)
    old = turns[start:end]
    images = [replace(turn, text="") for turn in old if turn.images]
    dropped = [turn for turn in old if turn.text]
    return [*turns[:start], *images, *turns[end:]], len(dropped)


def _first_exchange(turns: Sequence[Turn]) -> int:
    return 1 if turns and turns[0].role == "system" else 0
