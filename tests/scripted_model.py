"""A chat model that does what a test says and keeps every message it was sent: no network, no chance."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
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
