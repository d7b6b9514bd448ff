"""Chats of any model become turns of the prompt: calls of tools, their results and refusals are read as text."""

import json
from typing import Any

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.prompt.templates import Turn
from minigpt4_serve.server.openai.chat_request import parse_chat_request
from minigpt4_serve.server.openai.recent_responses import ResponseHistory
from minigpt4_serve.server.openai.responses_request import parse_responses_request
from minigpt4_serve.server.openai.turns import read_turns

ASK = {"role": "user", "content": "Weather?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLED = Turn("assistant", 'weather({"city": "Oslo"})')
RESULT = Turn("user", "Result of weather: 12 °C")
IMAGE = "data:image/png;base64,AA"


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        (
            [
                ASK,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "12 °C"},
            ],
            [Turn("user", "Weather?"), CALLED, RESULT],
        ),
        (
            [ASK, {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}],
            [Turn("user", "Weather?"), Turn("assistant", f"One moment.\n{CALLED.text}")],
        ),
        (
            [ASK, {"role": "tool", "tool_call_id": "lost", "content": [{"type": "text", "text": "12 °C"}]}],
            [Turn("user", "Weather?"), Turn("user", "Result: 12 °C")],
        ),
        ([ASK, {"role": "function", "name": "weather", "content": "12 °C"}], [Turn("user", "Weather?"), RESULT]),
        (
            [ASK, {"role": "tool", "content": [{"type": "image_url", "image_url": IMAGE}]}],
            [Turn("user", "Weather?"), Turn("user", "Result: ", 1)],
        ),
        (
            [
                ASK,
                {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
            ],
            [Turn("user", "Weather?"), CALLED],
        ),
        (
            [ASK, {"role": "assistant", "content": None, "refusal": "I can't."}, ASK],
            [Turn("user", "Weather?"), Turn("assistant", "I can't."), Turn("user", "Weather?")],
        ),
        (
            [ASK, {"role": "assistant", "content": [{"type": "refusal", "refusal": "I can't."}]}],
            [Turn("user", "Weather?"), Turn("assistant", "I can't.")],
        ),
        (
            [
                ASK,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "A"}],
                },
            ],
            [Turn("user", "Weather?"), Turn("assistant", "A")],
        ),
        ([ASK, {"role": "assistant", "content": "Sunny."}], [Turn("user", "Weather?"), Turn("assistant", "Sunny.")]),
        ([ASK, {"role": "assistant", "content": ""}], [Turn("user", "Weather?")]),
        ([ASK, {"role": "system", "content": "Be short."}], [Turn("user", "Weather?"), Turn("system", "Be short.")]),
        ([ASK, {"role": "developer", "content": "Be short."}], [Turn("user", "Weather?"), Turn("system", "Be short.")]),
        ([{"role": "system", "content": "Say hello."}], [Turn("user", "Say hello.")]),
    ],
)
def test_chats_of_other_models_are_read(messages: list[dict[str, Any]], turns: list[Turn]) -> None:
    request = parse_chat_request(json.dumps({"messages": messages}).encode())
    assert read_turns(request.messages)[0] == turns


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "x"}],
        [{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}],
        [{"role": "system", "content": " "}],
        [{"role": "user", "content": ""}],
        [ASK, {"role": "assistant", "content": "x"}, {"role": "user", "content": "  "}],
    ],
)
def test_a_chat_without_a_question_is_refused(messages: list[dict[str, Any]]) -> None:
    request = parse_chat_request(json.dumps({"messages": messages}).encode())
    with pytest.raises(InvalidRequest, match="question") as caught:
        read_turns(request.messages)
    assert caught.value.param == "messages"


def test_a_picture_of_the_assistants_is_refused() -> None:
    picture = {"role": "assistant", "content": [{"type": "image_url", "image_url": IMAGE}]}
    request = parse_chat_request(json.dumps({"messages": [ASK, picture, ASK]}).encode())
    with pytest.raises(InvalidRequest) as caught:
        read_turns(request.messages)
    assert caught.value.param == "messages[1].content"


@pytest.mark.parametrize(
    ("items", "turns"),
    [
        (
            [
                ASK,
                {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": None},
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "weather",
                    "arguments": '{"city": "Oslo"}',
                    "id": "fc_1",
                    "status": "completed",
                },
                {"type": "function_call_output", "call_id": "c1", "output": "12 °C"},
            ],
            [Turn("user", "Weather?"), CALLED, RESULT],
        ),
        (
            [
                ASK,
                {"type": "custom_tool_call", "call_id": "c1", "name": "run", "input": "1 + 1"},
                {
                    "type": "custom_tool_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "2"}, {"type": "input_image", "image_url": IMAGE}],
                },
            ],
            [Turn("user", "Weather?"), Turn("assistant", "run(1 + 1)"), Turn("user", "Result of run: 2", 1)],
        ),
        (
            [
                ASK,
                {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
                {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "I can't."}]},
                ASK,
            ],
            [Turn("user", "Weather?"), Turn("assistant", "I can't."), Turn("user", "Weather?")],
        ),
    ],
)
def test_items_of_other_models_responses_are_read(items: list[dict[str, Any]], turns: list[Turn]) -> None:
    request = parse_responses_request(json.dumps({"input": items}).encode(), ResponseHistory(2**20, 60).of_key(""))
    assert read_turns(request.as_chat().messages)[0] == turns
