"""Agents, the chat model and MCP clients get correct answers about drawings from a server with the embedded model."""

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_minigpt4 import ChatMiniGPT4, ImageHandles, MiniGPT4VisionTool
from langchain_suites import ChatModelFlags, drawn_downloads
from langchain_tests.integration_tests import ChatModelIntegrationTests, ToolsIntegrationTests
from langgraph.checkpoint.memory import InMemorySaver
from mcp import Client, StdioServerParameters
from scripted_model import ScriptedModel, assert_no_image_sent, call_vision_tool, content_length, repeat_tool_answer

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

COLORS = ("red", "green", "blue")
QUESTION = "What color is the circle?"


def png(color: str) -> bytes:
    return encode(draw(color, (320, 240)))


def image(color: str) -> dict[str, Any]:
    return {"type": "image", "base64": base64.b64encode(png(color)).decode(), "mime_type": "image/png"}


@pytest.fixture(autouse=True)
def _environment(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is configured by environment variables."""
    monkeypatch.setenv("MINIGPT4_BASE_URL", server_url)
    monkeypatch.delenv("MINIGPT4_API_KEY", raising=False)


def test_an_agent_answers_about_three_images() -> None:
    all_three = AIMessage(
        "", tool_calls=[call_vision_tool(QUESTION, f"image_{n}", call_id=f"c{n}").tool_calls[0] for n in (1, 2, 3)]
    )

    def lists(messages: Sequence[BaseMessage]) -> AIMessage:
        return AIMessage(" | ".join(str(repeat_tool_answer([message]).content) for message in messages[-3:]))

    script = [
        *(all_three, lists),
        *(call_vision_tool(QUESTION, "image_2"), repeat_tool_answer),
        *(call_vision_tool("How many objects are there?", "image_3"), repeat_tool_answer),
    ]
    model = ScriptedModel(script=script)
    agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}

    def ask(*content: Any) -> str:
        state = agent.invoke({"messages": [HumanMessage(list(content))]}, thread)
        return str(state["messages"][-1].content).lower()

    text = {"type": "text", "text": "Which colours are the circles?"}
    answers = ask(*map(image, COLORS), text).split(" | ")
    assert [color in answer for color, answer in zip(COLORS, answers, strict=True)] == [True] * 3, answers
    assert "green" in ask("What colour was the second?")
    assert "one" in ask("And how many things are in the third?")
    assert_no_image_sent(model.sent, [png(color) for color in COLORS])
    first = model.sent[0][0]
    assert (content_length([first]) - content_length([HumanMessage([text])])) / len(COLORS) <= 200


async def test_two_images_in_one_question() -> None:
    tool = MiniGPT4VisionTool()
    urls = [f"data:image/png;base64,{base64.b64encode(png(color)).decode()}" for color in ("red", "blue")]
    call = {"type": "tool_call", "id": "1", "name": tool.name, "args": {"question": QUESTION, "images": urls}}
    message = await tool.ainvoke(call)
    assert message.status == "success"
    assert message.artifact["text"]
    assert len(message.artifact["digests"]) == 2
    assert set(message.artifact["timings"]) >= {"images_s", "queue_s", "ttft_s", "total_s"}
    assert message.artifact["usage"]["prompt_tokens"] > 0


def test_the_chat_model_answers_follow_ups() -> None:
    model = ChatMiniGPT4()
    messages: list[BaseMessage] = [HumanMessage([image("green"), {"type": "text", "text": QUESTION}])]
    first = model.invoke(messages)
    assert "green" in first.text.lower()
    streamed = list(model.stream([*messages, first, HumanMessage("How many objects are there?")]))
    assert "one" in "".join(chunk.text for chunk in streamed).lower()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_an_mcp_client_over_stdio(mode: str, server_url: str, tmp_path: Path) -> None:
    (tmp_path / "blue.png").write_bytes(png("blue"))
    command = str(Path(sys.executable).with_name("minigpt4-mcp"))
    started = StdioServerParameters(
        command=command, args=["--folder", str(tmp_path)], env={"MINIGPT4_BASE_URL": server_url}
    )
    async with Client(started, mode=mode) as client:
        result = await client.call_tool("look_at_pictures", {"images": ["blue.png"], "question": QUESTION})
    assert not result.is_error
    assert result.structured_content is not None
    assert "blue" in result.structured_content["text"].lower()


class TestToolOnTheServer(ToolsIntegrationTests):
    """LangChain's own checks."""

    @property
    def tool_constructor(self) -> type[MiniGPT4VisionTool]:
        return MiniGPT4VisionTool

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": QUESTION, "images": [f"data:image/png;base64,{image('red')['base64']}"]}


class TestChatOnTheServer(ChatModelFlags, ChatModelIntegrationTests):
    """LangChain's own checks."""

    @property
    def model_override_value(self) -> str:
        return "minigpt4-tiny"

    @pytest.fixture(autouse=True)
    def _downloads_are_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn_downloads(monkeypatch)
