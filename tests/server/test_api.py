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
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.json_schema"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_k": 10**30}, "top_k"),
        ({"timeout": 0}, "timeout"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
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
        response_format={"type": "text"},
        user="me",
        metadata={},
        foo=1,
    )
    assert request.stop == []


def test_null_means_not_given() -> None:
    request = _parse(n=None, stream=None, stop=None, max_tokens=None, temperature=None, logprobs=None)
    assert (request.n, request.stream, request.stop, request.logprobs) == (1, False, [], False)


def test_shorthands_that_clients_send() -> None:
    parts = [{"type": "image_url", "image_url": "data:image/png;base64,AA"}, {"type": "text", "text": "Q"}]
    request = parse_chat_request(json.dumps({"messages": [{"role": "user", "content": parts}], "stop": "END"}).encode())
    assert request.messages[0].content[0].image_url.url == "data:image/png;base64,AA"
    assert request.stop == ["END"]
