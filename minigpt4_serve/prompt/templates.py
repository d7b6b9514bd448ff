"""How chats become prompt text for the three members of the family. Knows no tokens, tensors or HTTP.

Source of every string: the original's ``conversation.py``. Each image is written ``<Img><ImageHere></Img>``; where the
original joins, separates or leaves out a blank, so do we, because the published weights were tuned on exactly that.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "IMAGE_PLACEHOLDER",
    "TEMPLATES",
    "ConversationTemplate",
    "Turn",
    "escape_control_tokens",
    "render",
    "truncate_history",
    "truncation_points",
]

IMAGE_PLACEHOLDER = "<ImageHere>"
_IMAGE = f"<Img>{IMAGE_PLACEHOLDER}</Img>"
_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)


@dataclass(frozen=True)
class ConversationTemplate:
    """The strings around the turns of a chat.

    Attributes:
        system: text in front of everything, without its separator.
        user, assistant: role strings, blanks included.
        separator: follows the system text and every finished message.
        stop: strings that end an answer, beside the end-of-sequence token.
    """

    name: Literal["vicuna", "llama2", "v2"]
    system: str
    user: str
    assistant: str
    separator: str
    stop: tuple[str, ...]


TEMPLATES = {
    "vicuna": ConversationTemplate("vicuna", _SYSTEM, "Human: ", "Assistant: ", "###", ("###",)),
    # The original's first demo stops Llama-2 at ### as well, though it was trained to end with </s>.
    "llama2": ConversationTemplate("llama2", _SYSTEM, "<s>[INST] ", " [/INST] ", "", ("###",)),
    # The two beginning-of-sequence tokens this gives together with the tokenizer's own are how v2 was prompted.
    "v2": ConversationTemplate("v2", "", "<s>[INST] ", " [/INST]", "", ()),
}


@dataclass(frozen=True)
class Turn:
    """One message of a chat: its pictures, then its words.

    Attributes:
        images: number of pictures that this message brings; they stand before the text, as in the original.
        text: what was said, untrusted.
    """

    role: Literal["system", "user", "assistant"]
    text: str = ""
    images: int = 0


# Strings with a meaning in some format. They are broken with a blank, not removed: the words stay readable, and no
# user can close a turn, open another role, end the sequence or claim a picture slot.
_MARKERS = re.compile(
    r"(?<=<)(?=/?(?:Img|ImageHere|s|unk)>|<SYS>|</SYS>)|(?<=\[)(?=/?INST\])|(?<=#)(?=##)|(?<=##)(?=#)"
)


def escape_control_tokens(text: str) -> str:
    """Break every control string in untrusted text, so that it reaches the model as plain words.

    A trailing ``#`` gets a blank, so that it can't melt into the separator that follows. Blanks at either end stay, as
    in the original: they are part of what was typed.
    """
    text = _MARKERS.sub(" ", text.replace("\r\n", "\n"))
    return text + " " if text.endswith("#") else text


def render(turns: Sequence[Turn], fmt: ConversationTemplate) -> str:
    """The prompt for the next answer, with one ``<ImageHere>`` for every picture, in order.

    A leading system turn replaces the format's own system text; later ones are read as words of the user, since the
    family knows no other place for them. Consecutive pictures become messages of their own; words that follow a picture
    join its message with one blank.
    """
    system = fmt.system
    if turns and turns[0].role == "system":
        system, turns = escape_control_tokens(turns[0].text.strip()), turns[1:]
    messages: list[list[str]] = []  # [role, text]
    for turn in turns:
        if turn.role == "assistant":
            # What the original keeps of an answer is stripped; a # at its end must stay apart from the separator.
            messages.append([fmt.assistant, escape_control_tokens(turn.text.strip())])
            continue
        messages += [[fmt.user, _IMAGE] for _ in range(turn.images)]
        text = escape_control_tokens(turn.text)
        if text.strip():
            if messages and messages[-1][0] == fmt.user and messages[-1][1].endswith("</Img>"):
                messages[-1][1] += " " + text
            else:
                messages.append([fmt.user, text])
    finished = "".join(role + text + fmt.separator for role, text in messages)
    return system + (fmt.separator if system else "") + finished + fmt.assistant


def truncation_points(turns: Sequence[Turn]) -> list[int]:
    """Where exchanges end that may be forgotten, oldest first; the last user message and a leading system turn stay."""
    start, last = _oldest(turns), max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    ends: list[int] = []
    for i in range(start, last):
        if turns[i].role == "assistant" and ends and ends[-1] == i:
            ends[-1] = i + 1  # the answer goes with its question
        elif turns[i].text:
            ends.append(i + 1)
    return ends


def truncate_history(turns: Sequence[Turn], end: int) -> tuple[list[Turn], int]:
    """A chat without the words before ``end``, pictures kept: (shorter chat, messages that lost their words)."""
    start = _oldest(turns)
    old = turns[start:end]
    pictures = [replace(turn, text="") for turn in old if turn.images]
    return [*turns[:start], *pictures, *turns[end:]], sum(bool(turn.text) for turn in old)


def _oldest(turns: Sequence[Turn]) -> int:
    return 1 if turns and turns[0].role == "system" else 0
