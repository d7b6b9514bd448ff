"""Tools of a request: accepted where the model may answer in words, called by grammar where a call is demanded."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import TypeAdapter

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.protocol import Delta, Timings, Usage
from minigpt4_serve.server.openai.chat_request import parse_chat_request
from minigpt4_serve.server.openai.chat_tool_formatter import ChatToolFormatter
from minigpt4_serve.server.openai.tool_calls import CallReader, ForcedCall, Tool, read_forced_call

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
COLOR = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["color", "sure"],
}
COUNT = {
    "type": "object",
    "properties": {"count": {"$ref": "#/$defs/Count"}},
    "required": ["count"],
    "$defs": {"Count": {"type": "integer", "minimum": 0, "maximum": 9}},
}
CHAT_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "report_color", "description": "The color.", "parameters": COLOR}},
    {"type": "function", "function": {"name": "report_count", "parameters": COUNT}},
    {"type": "function", "function": {"name": "stop"}},
]
FLAT_TOOLS: list[Any] = [{"type": "function", **tool["function"]} for tool in CHAT_TOOLS]
NAMES = {tool["name"] for tool in FLAT_TOOLS}
QUESTION: Any = [{"role": "user", "content": "Which?"}]


def _check_call(name: str, arguments: str) -> None:
    found = json.loads(arguments)
    if name == "report_color":
        assert found["color"] in ("red", "blue")
        assert found["sure"] in (True, False)
        assert set(found) == {"color", "sure"}
    elif name == "report_count":
        assert found in [{"count": count} for count in range(10)]
    else:
        assert (name, found) == ("stop", {})


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (CHAT_TOOLS, None),
        (CHAT_TOOLS, "auto"),
        (CHAT_TOOLS, "none"),
        (FLAT_TOOLS, "auto"),
        ([], "auto"),
        ([{"type": "custom", "custom": {"name": "shell"}}], None),
        ([{"type": "function"}], "auto"),
        ([{"type": "web_search"}], "none"),
        (CHAT_TOOLS, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": CHAT_TOOLS[:1]}}),
        (CHAT_TOOLS * 12, "auto"),
    ],
)
def test_a_call_that_may_be_left_out_is(tools: list[Any], choice: Any) -> None:
    assert read_forced_call(tools, choice) is None


@pytest.mark.parametrize(
    ("choice", "names", "named"),
    [
        ("required", ["report_color", "report_count", "stop"], False),
        ({"type": "function", "function": {"name": "report_count"}}, ["report_count"], True),
        ({"type": "function", "name": "report_count"}, ["report_count"], True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": CHAT_TOOLS[:2]}},
            ["report_color", "report_count"],
            False,
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": FLAT_TOOLS[2:]}, ["stop"], False),
    ],
)
@pytest.mark.parametrize("tools", [CHAT_TOOLS, FLAT_TOOLS])
def test_a_demanded_call_is_read(tools: list[Any], choice: Any, names: list[str], named: bool) -> None:
    call = read_forced_call(tools, choice)
    assert call is not None
    assert ([tool.name for tool in call.tools], call.named) == (names, named)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": CHAT_TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": CHAT_TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": CHAT_TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": CHAT_TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tools": CHAT_TOOLS, "tool_choice": 5}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [5]}, "tools"),
        ({"tools": CHAT_TOOLS * 50}, "tools"),
        ({"tools": CHAT_TOOLS * 2, "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": 'a", "x'}}], "tool_choice": "required"}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}], "tool_choice": "required"},
            "tools",
        ),
    ],
)
def test_a_choice_that_cannot_be_honored_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_chat_request(json.dumps({"messages": QUESTION, **fields}).encode())
    assert (refused.value.param or "").startswith(param)


def test_schemas_of_several_tools_keep_their_references() -> None:
    call = read_forced_call(CHAT_TOOLS, "required")
    assert call is not None
    assert call.schema["$defs"]["1"]["properties"]["count"] == {"$ref": "#/$defs/1/$defs/Count"}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_call_is_read_from_any_deltas(size: int, reason: str) -> None:
    one = ForcedCall((Tool("f", {}),), named=True)
    several = ForcedCall((Tool("f", {}), Tool("g", {})), named=False)
    arguments = '{"a": {"b": "}"}}'
    for call, text, name in [
        (one, arguments, "f"),
        (several, f'{{"name": "g", "arguments": {arguments}}}', "g"),
    ]:
        reader = CallReader(call)
        deltas = [text[i : i + size] for i in range(0, len(text), size)]
        if reason == "length":
            cut = text.removesuffix("}")
            deltas = [cut[i : i + size] for i in range(0, len(cut), size)]
        added = [
            reader.feed(delta, finish_reason=reason if i == len(deltas) - 1 else None) for i, delta in enumerate(deltas)
        ]
        assert reader.name == name
        assert "".join(added) == reader.arguments
        expected = arguments[:-1] if reason == "length" and call is one else arguments
        assert reader.arguments == expected


def test_a_call_cut_before_its_name_is_no_call() -> None:
    request = parse_chat_request(
        json.dumps({"messages": QUESTION, "tools": CHAT_TOOLS, "tool_choice": "required"}).encode()
    )
    call = request.forced_call
    assert call is not None
    formatter = ChatToolFormatter("m", request, "1", 0, call)
    last = Delta(text='{"name": "repo', finish_reason="length", usage=Usage(1, 0, 1), timings=Timings(*[0.0] * 7))
    assert '"finish_reason":"length"' in formatter.delta_event(last)
    formatter.collect(last)
    (choice,) = formatter.whole(last).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("", None, "length")


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_without_demand_are_answered_in_words(served: httpx.Client, choice: str | None) -> None:
    fields: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    plain = served.post(CHAT, json={"messages": QUESTION, **fields})
    tools = {"tools": CHAT_TOOLS, **({} if choice is None else {"tool_choice": choice})}
    answer = served.post(CHAT, json={"messages": QUESTION, **fields, **tools})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain.json()["choices"]
    assert answer.headers.get("x-minigpt4-tool-choice") == (None if choice == "none" else "none")
    assert "x-minigpt4-tool-choice" not in plain.headers


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "report_color"}}], ids=["required", "named"]
)
def test_chat_completions_answer_with_the_call(client: openai.OpenAI, choice: Any) -> None:
    given = client.chat.completions.create(
        model="small", messages=QUESTION, tools=CHAT_TOOLS, tool_choice=choice, max_tokens=120, n=2, temperature=1
    )
    for answer in given.choices:
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        assert answer.message.tool_calls is not None
        (call,) = answer.message.tool_calls
        assert call.type == "function"
        assert choice == "required" or call.function.name == "report_color"
        assert call.function.name in NAMES
        _check_call(call.function.name, call.function.arguments)
    assert len({answer.message.tool_calls[0].id for answer in given.choices if answer.message.tool_calls}) == 2


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "report_count"}}], ids=["required", "named"]
)
def test_a_streamed_call_is_the_whole_one(client: openai.OpenAI, choice: Any) -> None:
    fields: Any = {
        "model": "small",
        "messages": QUESTION,
        "tools": CHAT_TOOLS,
        "tool_choice": choice,
        "max_tokens": 120,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**fields).choices[0].message.tool_calls
    names: list[str] = []
    ids: list[str] = []
    arguments = ""
    reasons: list[str] = []
    for chunk in client.chat.completions.create(**fields, stream=True):
        for answer in chunk.choices:
            assert not answer.delta.content
            for part in answer.delta.tool_calls or ():
                names += [part.function.name] if part.function and part.function.name else []
                ids += [part.id] if part.id else []
                arguments += (part.function.arguments or "") if part.function else ""
            reasons += [answer.finish_reason] if answer.finish_reason else []
    assert whole is not None
    assert reasons == ["tool_calls"]
    assert len(ids) == 1
    assert names == [whole[0].function.name]
    assert arguments == whole[0].function.arguments
    _check_call(names[0], arguments)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "report_color"}], ids=["required", "named"]
)
def test_responses_answer_with_the_call(client: openai.OpenAI, served: httpx.Client, choice: Any) -> None:
    from openai.types.responses import ResponseStreamEvent

    fields: Any = {
        "model": "small",
        "input": "Which?",
        "tools": FLAT_TOOLS,
        "tool_choice": choice,
        "max_output_tokens": 120,
        "temperature": 0,
    }
    (whole,) = client.responses.create(**fields).output
    assert whole.type == "function_call"
    assert whole.status == "completed"
    _check_call(whole.name, whole.arguments)
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    stream = served.post(RESPONSES, json={**fields, "stream": True})
    events = [
        adapter.validate_json(block.split("\n")[1].removeprefix("data: "))
        for block in stream.text.strip().split("\n\n")
    ]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[3:-3]) == whole.arguments
    assert events[2].item.name == events[-2].item.name == whole.name
    assert events[-1].response.output[0].arguments == whole.arguments


def test_responses_answer_tools_in_words(served: httpx.Client) -> None:
    answer = served.post(RESPONSES, json={"input": "Which?", "tools": FLAT_TOOLS, "max_output_tokens": 4})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-minigpt4-tool-choice"] == "none"
    assert answer.json()["output"][0]["type"] == "message"
    assert answer.json()["tool_choice"] == "none"


@pytest.mark.parametrize(("path", "tools"), [(CHAT, CHAT_TOOLS), (RESPONSES, FLAT_TOOLS)])
def test_parameters_that_cannot_be_followed_name_the_tools(
    served: httpx.Client, path: str, tools: list[dict[str, Any]]
) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer", "not": {}}}}}
    tool = {"type": "function", **function} if path == RESPONSES else {"type": "function", "function": function}
    body = {"messages": QUESTION, "input": "x", "tools": [tool, *tools], "tool_choice": "required"}
    error = served.post(path, json=body).json()["error"]
    assert error["param"] == "tools"
    assert "'not'" in error["message"]


def test_what_a_schema_cannot_enforce_is_reported(served: httpx.Client) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}
    shape = {"type": "json_schema", "json_schema": {"name": "set", "schema": schema}}
    answer = served.post(CHAT, json={"messages": QUESTION, "response_format": shape, "max_tokens": 30})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-minigpt4-schema-ignored"] == "uniqueItems"
    assert set(json.loads(answer.json()["choices"][0]["message"]["content"])) <= {1, 2}
