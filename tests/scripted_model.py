"""A chat model that does what a test says and keeps every message it was sent: no network, no chance."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, message_to_dict
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

Turn = AIMessage | Callable[[Sequence[BaseMessage]], AIMessage]


def looks(question: str, *images: str, call_id: str = "call_1") -> AIMessage:
    """The model calls the vision tool."""
    call = {"name": "look_at_pictures", "args": {"question": question, "images": list(images)}, "id": call_id}
    return AIMessage("", tool_calls=[call])


def repeats(messages: Sequence[BaseMessage]) -> AIMessage:
    """The model passes on what the tool said."""
    return AIMessage(str(messages[-1].content).split("<picture_answer>\n")[-1].split("\n</picture_answer>")[0])


class ScriptedModel(BaseChatModel):
    """Takes one turn of its script at each call."""

    script: list[Any]
    sent: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> "ScriptedModel":
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.sent.append([message.model_copy(deep=True) for message in messages])
        turn: Turn = self.script.pop(0)
        return ChatResult(generations=[ChatGeneration(message=turn if isinstance(turn, AIMessage) else turn(messages))])


def no_picture_in(sent: Sequence[Sequence[BaseMessage]], pictures: Sequence[bytes]) -> None:
    """Nothing of a picture's bytes, in any encoding's guise, went to the model."""
    for messages in sent:
        for message in messages:
            wire = json.dumps(message_to_dict(message))
            assert not re.search(r"[A-Za-z0-9+/_-]{120,}", wire), wire[:500]
            assert "data:image" not in wire
            for picture in pictures:
                middle = base64.b64encode(picture).decode()[80:104]
                assert middle not in wire


def size_of(messages: Sequence[BaseMessage]) -> int:
    """Characters of the messages' contents as JSON."""
    return sum(len(json.dumps(message.content)) for message in messages)
