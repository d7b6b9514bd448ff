"""Real agents of ``create_agent`` with a scripted model: what reaches the model, what is answered, what is stored."""

import asyncio
import base64
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import ENDLESS, refusal
from fakes.openai_server import OpenAIServer
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, message_to_dict
from langchain_core.tools import tool
from langchain_minigpt4 import ImageHandles, MiniGPT4VisionTool
from langgraph.checkpoint.memory import InMemorySaver
from scripted_model import ScriptedModel, assert_no_image_sent, call_vision_tool, content_length, repeat_tool_answer
from waiting import wait_until


def png(color: str) -> bytes:
    return encode(draw(color, (160, 120)))


def b64(color: str) -> str:
    return base64.b64encode(png(color)).decode()


def v1(color: str) -> dict[str, Any]:
    return {"type": "image", "base64": b64(color), "mime_type": "image/png"}


def openai_style(color: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(color)}"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_follow_ups_reach_earlier_images_by_handle(server: OpenAIServer) -> None:
    script = [
        call_vision_tool("What colour is the disc?", "image_1"),
        repeat_tool_answer,
        call_vision_tool("What colours?", "image_2", "image_3"),
        repeat_tool_answer,
        call_vision_tool("What colour was it?", "image_1"),
        repeat_tool_answer,
    ]
    model = ScriptedModel(script=script)
    agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}

    def ask(*blocks: dict[str, Any]) -> str:
        state = agent.invoke({"messages": [HumanMessage(list(blocks))]}, thread)
        assert "minigpt4_images" not in state
        return str(state["messages"][-1].content)

    assert ask(v1("red"), text("What is this?")) == "red"
    assert ask(text("And these?"), openai_style("green"), v1("blue")) == "green and blue"
    assert ask(text("What was the first again?")) == "red"
    assert len(model.sent) == 6
    assert_no_image_sent(model.sent, [png(color) for color in ("red", "green", "blue")])
    # What three pictures add to the longest prompt: their handles.
    last = model.sent[-1]
    people = [message for message in last if isinstance(message, HumanMessage)]
    words = content_length([HumanMessage([text("What is this?")]), HumanMessage([text("And these?")]), people[-1]])
    assert (content_length(people) - words) / 3 <= 200
    assert [str(message.content).count("image_") for message in people] == [1, 2, 0]


async def test_pasted_urls_and_tool_images_work_in_parallel_calls(server: OpenAIServer) -> None:
    @tool
    def photograph() -> list[dict[str, Any]]:
        """Take a photo."""
        return [text("Done."), v1("blue")]

    both = AIMessage(
        "",
        tool_calls=call_vision_tool("A?", "image_1").tool_calls
        + call_vision_tool("B?", "image_2", call_id="c2").tool_calls,
    )

    def tells(messages: Sequence[BaseMessage]) -> AIMessage:
        return AIMessage(" ".join(str(repeat_tool_answer([message]).content) for message in messages[-2:]))

    script = [AIMessage("", tool_calls=[{"name": "photograph", "args": {}, "id": "c0"}]), both, tells]
    model = ScriptedModel(script=script)
    agent = create_agent(model, tools=[MiniGPT4VisionTool(), photograph], middleware=[ImageHandles()])
    pasted = HumanMessage(f"Compare data:image/png;base64,{b64('yellow')} with a new photo.")
    state = await agent.ainvoke({"messages": [pasted]})
    assert state["messages"][-1].content == "yellow blue"
    assert_no_image_sent(model.sent, [png("yellow"), png("blue")])
    first = str(model.sent[0][0].content)
    assert re.fullmatch(r"Compare \[image_1: [^]]*\] with a new photo\.", first)


def test_failures_are_tool_errors_and_progress_is_streamed(server: OpenAIServer) -> None:
    server.answers = [refusal(429, "overloaded", retry_after="20"), "a red disc"]
    model = ScriptedModel(
        script=[call_vision_tool("Q?", "image_1"), call_vision_tool("Q?", "image_1"), repeat_tool_answer]
    )
    agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()])
    events = list(agent.stream({"messages": [HumanMessage([v1("red")])]}, stream_mode=["custom", "values"]))
    custom = [event for mode, event in events if mode == "custom"]
    assert [event["text"] for event in custom if event["text"]] == ["a ", "red ", "disc"]
    final = [event for mode, event in events if mode == "values"][-1]
    tools = [message for message in final["messages"] if isinstance(message, ToolMessage)]
    assert [message.status for message in tools] == ["error", "success"]
    assert tools[0].content == "The vision server is busy; try again in 20 seconds."


def test_the_tool_finds_images_without_the_middleware(server: OpenAIServer) -> None:
    model = ScriptedModel(script=[call_vision_tool("Q?", "image_2"), repeat_tool_answer])
    agent = create_agent(model, tools=[MiniGPT4VisionTool()])
    state = agent.invoke({"messages": [HumanMessage([v1("red"), openai_style("green")])]})
    assert state["messages"][-1].content == "green"


def test_a_state_serialized_as_json_still_works(server: OpenAIServer) -> None:
    model = ScriptedModel(script=[AIMessage("Nice."), call_vision_tool("Q?", "image_1"), repeat_tool_answer])
    saver = InMemorySaver()
    agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()], checkpointer=saver)
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke({"messages": [HumanMessage([v1("red")])]}, thread)
    stored = agent.get_state(thread).values
    assert json.loads(json.dumps(stored["minigpt4_images"])) == {"image_1": {"base64": b64("red")}}
    assert b64("red") not in json.dumps([message_to_dict(message) for message in stored["messages"]])
    state = agent.invoke({"messages": ["What was it?"]}, thread)
    assert state["messages"][-1].content == "red"


def test_images_of_every_turn_are_numbered_and_stored_once(server: OpenAIServer) -> None:
    colors = ["red", "green", "blue", "yellow"]
    script = [
        turn for number in range(1, 5) for turn in (call_vision_tool("Q?", f"image_{number}"), repeat_tool_answer)
    ]
    saver = InMemorySaver()
    agent = create_agent(
        ScriptedModel(script=script), tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()], checkpointer=saver
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    for color in colors:
        state = agent.invoke({"messages": [HumanMessage([v1(color), text("And this?")])]}, thread)
        assert state["messages"][-1].content == color
    assert list(agent.get_state(thread).values["minigpt4_images"]) == [f"image_{number}" for number in range(1, 5)]
    stored = [blob for _, blob in saver.blobs.values()]
    stored += [write[2][1] for writes in saver.writes.values() for write in writes.values()]
    copies = [sum(blob.count(b64(color).encode()) for blob in stored) for color in colors]
    # Three are LangGraph's: the turn's input, the messages' first value and the write that brought it.
    assert copies == [4] * 4, "a picture must not be stored again with every later step"


def test_a_forked_conversation_has_its_own_images(server: OpenAIServer) -> None:
    model = ScriptedModel(
        script=[AIMessage("Nice."), AIMessage("Nice, too."), call_vision_tool("Q?", "image_2"), repeat_tool_answer]
    )
    agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke({"messages": [HumanMessage([v1("red")])]}, thread)
    early = agent.get_state(thread).config
    agent.invoke({"messages": [HumanMessage([v1("green")])]}, thread)
    state = agent.invoke({"messages": [HumanMessage([v1("blue")])]}, early)
    assert state["messages"][-1].content == "blue"
    assert list(agent.get_state(thread).values["minigpt4_images"]) == ["image_1", "image_2"]


def test_a_sub_agent_gets_images_by_handle(server: OpenAIServer) -> None:
    expert_model = ScriptedModel(script=[call_vision_tool("What colour?", "image_2"), repeat_tool_answer])
    expert = create_agent(expert_model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()])

    @tool
    def ask_expert(task: str, runtime: ToolRuntime) -> str:
        """Hand a task to the expert."""
        given = {"messages": [task], "minigpt4_images": runtime.state["minigpt4_images"]}
        return str(expert.invoke(given)["messages"][-1].content)

    asks = AIMessage("", tool_calls=[{"name": "ask_expert", "args": {"task": "Colour of image_2?"}, "id": "c1"}])
    model = ScriptedModel(script=[asks, repeat_tool_answer])
    agent = create_agent(model, tools=[ask_expert], middleware=[ImageHandles()])
    state = agent.invoke({"messages": [HumanMessage([v1("red"), v1("green")])]})
    assert state["messages"][-1].content == "green"
    assert_no_image_sent([*model.sent, *expert_model.sent], [png("red"), png("green")])


async def test_canceling_the_agent_aborts_the_request(server: OpenAIServer) -> None:
    server.answers = [ENDLESS]
    agent = create_agent(
        ScriptedModel(script=[call_vision_tool("Q?", "image_1")]),
        tools=[MiniGPT4VisionTool(max_answer_chars=10**6)],
        middleware=[ImageHandles()],
    )
    running = asyncio.create_task(agent.ainvoke({"messages": [HumanMessage([v1("red")])]}))
    await wait_until(lambda: server.requests or running.done())
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await wait_until(lambda: server.aborted)


async def test_images_are_not_processed_in_the_event_loop(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_minigpt4 import images as blocks

    from minigpt4_serve.client import references, vision

    threads: dict[str, set[int]] = {}
    for module, name in ((references, "decode_pixels"), (vision, "image_url_part"), (blocks, "_rewrite")):
        real = getattr(module, name)

        def noting(*args: Any, name: str = name, real: Any = real) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return real(*args)

        monkeypatch.setattr(module, name, noting)
    model = ScriptedModel(script=[call_vision_tool("Q?", "image_1"), repeat_tool_answer])
    agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()])
    state = await agent.ainvoke({"messages": [HumanMessage([v1("red")])]})
    assert state["messages"][-1].content == "red"
    assert set(threads) == {"decode_pixels", "image_url_part", "_rewrite"}
    assert threading.get_ident() not in set().union(*threads.values())
