import json
from typing import Any

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.openai.chat_request import parse_chat_request

QUESTION = [{"role": "user", "content": "Hello"}]


def _parse(**fields: Any) -> Any:
    return parse_chat_request(json.dumps({"messages": QUESTION, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ["a", "x" * 257]}, "stop[1]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": None}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}, "messages[0].tool_calls[0].function"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": []}}, "response_format.schema"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_k": 10**30}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"timeout": 0}, "timeout"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
        ({"best_of": 2}, "best_of"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"echo": True}, "echo"),
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"verbosity": "low"}, "verbosity"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"guided_grammar": "root ::= 'a'"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "5"}, "guided_json"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {}}, "guided_json": {}}, "guided_json"),
        ({"structured_outputs": 5}, "structured_outputs"),
        ({"grammar": "root ::= 'a'"}, "grammar"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"ebnf": "root ::= 'a'"}, "ebnf"),
        ({"format": "json"}, "format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _parse(**fields)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 40_000, b'{"messages": NaN}', b'{"a": "\\ud800"}']
)
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        parse_chat_request(body)


def test_a_body_of_millions_of_values_is_not_read() -> None:
    with pytest.raises(InvalidRequest, match="50000 values"):
        parse_chat_request(b"[" + b"0," * 100_000 + b"0]")


def test_unknown_fields_and_neutral_values_are_accepted() -> None:
    request = _parse(
        tools=[],
        tool_choice="auto",
        frequency_penalty=0,
        reasoning_effort="none",
        reasoning={"effort": None, "summary": "auto"},
        verbosity="medium",
        structured_outputs={"regex": None, "choice": None},
        best_of=1,
        echo=False,
        store=True,
        prompt_cache_key="chat",
        safety_identifier="me",
        response_format={"type": "text"},
        user="me",
        metadata={},
        foo=1,
    )
    assert request.stop == []


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True, "stream_options": {"include_usage": None}},
        {"response_format": None},
        {"response_format": {"type": "json_object", "schema": None}},
        {"structured_outputs": {"json": None, "json_object": None}},
        {"reasoning": {"effort": None, "summary": None}},
        {"messages": [{"role": "user", "content": "x", "name": None, "tool_calls": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": None}}]}]},
    ],
)
def test_null_means_not_given_in_nested_objects(fields: dict[str, Any]) -> None:
    assert _parse(**fields).messages


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_other_unicode_encodings_is_read(encoding: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "naïve 😀"}]}, ensure_ascii=False).encode(encoding)
    for sent in (body, bytearray(body)):
        assert parse_chat_request(sent).messages[0].content[0].text == "naïve 😀"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 0}, "top_p", 0),
        ({"stop": ""}, "stop", []),
        ({"stop": ["", "a"]}, "stop", ["a"]),
        ({"presence_penalty": -2}, "presence_penalty", -2),
        ({"frequency_penalty": 1.5}, "frequency_penalty", 1.5),
        ({"ignore_eos": True}, "ignore_eos", True),
    ],
)
def test_values_of_other_servers_are_read(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(_parse(**fields), name) == value


@pytest.mark.parametrize("detail", ["auto", "low", "high", "original"])
def test_every_detail_of_openais_is_accepted(detail: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:", "detail": detail}}
    assert _parse(messages=[{"role": "user", "content": [image]}]).num_images == 1


SHAPE = {"type": "object", "properties": {"a": {"const": None}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"response_format": {"type": "json_object", "schema": SHAPE}}, SHAPE),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SHAPE}}}, SHAPE),
        ({"guided_json": SHAPE}, SHAPE),
        ({"guided_json": json.dumps(SHAPE)}, SHAPE),
        ({"structured_outputs": {"json": SHAPE}}, SHAPE),
        ({"structured_outputs": {"json": json.dumps(SHAPE)}}, SHAPE),
        ({"structured_outputs": {"json_object": True}}, {"type": "object"}),
        ({"structured_outputs": {"json_object": False}}, None),
    ],
)
def test_schemas_of_all_servers_constrain_the_answer(fields: dict[str, Any], schema: dict[str, Any] | None) -> None:
    request = _parse(**fields)
    assert request.json_schema == (None if schema is None else json.dumps(schema))
    if schema is not None:
        assert request.rename_param("response_format") == next(iter(fields))


def test_null_means_not_given() -> None:
    request = _parse(n=None, stream=None, stop=None, max_tokens=None, temperature=None, logprobs=None)
    assert (request.n, request.stream, request.stop, request.logprobs) == (1, False, [], False)


def test_shorthands_that_clients_send() -> None:
    parts = [{"type": "image_url", "image_url": "data:image/png;base64,AA"}, {"type": "text", "text": "Q"}]
    request = parse_chat_request(json.dumps({"messages": [{"role": "user", "content": parts}], "stop": "END"}).encode())
    assert request.messages[0].content[0].image_url.url == "data:image/png;base64,AA"
    assert request.stop == ["END"]
