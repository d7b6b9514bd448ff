"""A LangChain chat model that follows a script and records the messages it receives."""

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


def call_vision_tool(question: str, *images: str, call_id: str = "call_1") -> AIMessage:
    """A turn that calls the vision tool."""
    call = {"name": "look_at_pictures", "args": {"question": question, "images": list(images)}, "id": call_id}
    return AIMessage("", tool_calls=[call])


def repeat_tool_answer(messages: Sequence[BaseMessage]) -> AIMessage:
    """A turn that repeat_tool_answer the tool's answer."""
    content = str(messages[-1].content)
    found = re.search(r'<picture_answer id="\w+">\n(.*)\n</picture_answer', content, re.DOTALL)
    return AIMessage(found[1] if found else content)


class ScriptedModel(BaseChatModel):
    """Answers each call with the next turn of its script; ``sent`` holds the messages of all calls."""

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


def assert_no_image_sent(sent: Sequence[Sequence[BaseMessage]], images: Sequence[bytes]) -> None:
    """Assert that no message contains image data in any encoding."""
    for messages in sent:
        for message in messages:
            wire = json.dumps(message_to_dict(message))
            assert not re.search(r"[A-Za-z0-9+/_-]{120,}", wire), wire[:500]
            assert "data:image" not in wire
            for image in images:
                middle = base64.b64encode(image).decode()[80:104]
                assert middle not in wire


def content_length(messages: Sequence[BaseMessage]) -> int:
    """Total length of the messages' contents as JSON, in characters."""
    return sum(len(json.dumps(message.content)) for message in messages)
