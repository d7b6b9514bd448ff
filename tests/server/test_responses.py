"""The Responses API as OpenAI's own client speaks it: whole, streamed with every event, shaped, refused."""

import base64
import json
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from drawing import draw, encode
from openai.types.responses import Response
from serving_app import few_steps, local_engine, serving, settled

RESPONSES = "/v1/responses"
PICTURE = "data:image/png;base64," + base64.b64encode(encode(draw("red"))).decode()
QUESTION = [
    {
        "role": "user",
        "content": [{"type": "input_image", "image_url": PICTURE}, {"type": "input_text", "text": "What is it?"}],
    }
]


def test_the_openai_client_gets_what_chat_completions_give(client: openai.OpenAI) -> None:
    given = client.responses.create(model="small", input=QUESTION, max_output_tokens=12, temperature=0)  # type: ignore[arg-type]
    chat = client.chat.completions.create(
        model="small",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": PICTURE}},
                    {"type": "text", "text": "What is it?"},
                ],
            }
        ],
        max_tokens=12,
        temperature=0,
    )
    assert given.output_text
    assert given.output_text == chat.choices[0].message.content
    assert given.usage is not None
    assert chat.usage is not None
    assert given.usage.input_tokens == chat.usage.prompt_tokens
    assert given.usage.output_tokens == chat.usage.completion_tokens
    assert given.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    assert given.model == "small"
    assert given.temperature == 0
    assert given.store is False if hasattr(given, "store") else True


def test_the_openai_client_streams_every_event_in_order(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(model="small", input=QUESTION, max_output_tokens=12, temperature=0, stream=True)  # type: ignore[arg-type]
    )
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 1
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        kinds[-1],
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Response = events[-1].response
    assert text == last.output_text
    assert not text.startswith(" ")
    whole = client.responses.create(model="small", input=QUESTION, max_output_tokens=12, temperature=0)  # type: ignore[arg-type]
    assert whole.output_text == text.rstrip()
    assert last.usage is not None
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}


def test_every_event_is_as_openais_types_say(served: httpx.Client) -> None:
    """The client's own models, strictly: nothing is missing and nothing has another type."""
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter

    answer = served.post(RESPONSES, json={"input": "Hello", "max_output_tokens": 5, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found = adapter.validate_json(data.removeprefix("data: "))
        assert found.type == name.removeprefix("event: ")


def test_earlier_answers_instructions_and_words_of_several_kinds(client: openai.OpenAI) -> None:
    first = client.responses.create(model="small", input=QUESTION, max_output_tokens=8, instructions="Be short.")  # type: ignore[arg-type]
    history = [*QUESTION, *(item.model_dump() for item in first.output), {"role": "user", "content": "And then?"}]
    second = client.responses.create(model="small", input=history, max_output_tokens=8, instructions="Be short.")  # type: ignore[arg-type]
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert second.instructions == "Be short."


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({"k" * 64: "v" * 512}, 200),
        ({"k" * 65: "v"}, 400),
        ({"k": "v" * 513}, 400),
        ({str(number): "v" for number in range(17)}, 400),
        ({"a": "x" * 3_000_000}, 400),
    ],
)
def test_metadata_has_limits(served: httpx.Client, metadata: dict[str, str], status: int) -> None:
    answer = served.post(RESPONSES, json={"input": "Hello", "max_output_tokens": 2, "metadata": metadata})
    assert answer.status_code == status
    assert len(answer.content) < 4000


def test_logprobs_metadata_and_json(client: openai.OpenAI) -> None:
    shape = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    given = client.responses.create(
        model="small",
        input="Which?",
        max_output_tokens=60,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        metadata={"a": "b"},
        text={"format": {"type": "json_schema", "name": "answer", "schema": shape, "strict": True}},
    )
    assert json.loads(given.output_text)["color"] in ("red", "blue")
    assert given.metadata == {"a": "b"}
    part = given.output[0].content[0]
    assert part.logprobs
    assert len(part.logprobs[0].top_logprobs) == 2  # type: ignore[union-attr,index]
    assert given.status == "completed"


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    given = client.responses.create(model="small", input="Hello", max_output_tokens=1, extra_body={"min_tokens": 1})
    assert given.status == "incomplete"
    assert given.incomplete_details is not None
    assert given.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "computer_call_output", "call_id": "c", "output": {}}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 5}]}, "input[0].output"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning"}, {"role": "assistant", "content": "x"}]}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"type": "reasoning"}, {"type": "web_search_call"}], "instructions": "Look."}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {
                "input": [
                    {"type": "reasoning", "id": "r", "summary": []},
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]},
                ],
            },
            "input[1].content[0].image_url",
        ),
        (
            {
                "instructions": "Look.",
                "input": [
                    {"role": "user", "content": "x"},
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]},
                ],
            },
            "input[1].content[0].image_url",
        ),
        ({"input": "x " * 3000}, "input"),
        ({"input": [{"role": "user", "content": "x " * 900}] * 2, "truncation": "disabled"}, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "store": "yes"}, "store"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "reasoning": {"effort": "high"}}, "reasoning"),
        ({"input": "x", "reasoning_effort": "high"}, "reasoning_effort"),
        ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": "x", "verbosity": "high"}, "verbosity"),
        ({"input": "x", "guided_regex": "a+"}, "guided_regex"),
        ({"input": "x", "guided_json": {"type": "zork"}}, "guided_json"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": 5}}}, "text.format.schema"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "x", "text": {"format": {"type": "grammar"}}}, "text.format"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "zork"}}}},
            "text.format",
        ),
        ({"input": "x", "min_tokens": 50, "max_output_tokens": 5}, "min_tokens"),
        ({"input": "x", "model": "gpt-5"}, "model"),
    ],
)
def test_what_can_not_be_done_is_refused_by_its_name(served: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = served.post(RESPONSES, json=fields)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param


def test_a_stream_that_breaks_ends_in_a_failed_response(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret words of a driver")

    with (
        serving(small_model) as (served, service),
        openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0) as client,
        ExitStack() as held,
    ):
        held.enter_context(few_steps(service))
        long = {"min_tokens": 400}
        stream = client.responses.create(
            model="small", input="Hello", max_output_tokens=400, temperature=0, stream=True, extra_body=long
        )
        events = []
        for event in stream:
            events.append(event)
            if event.type == "response.output_text.delta":
                monkeypatch.setattr(local_engine(service)._scheduler, "schedule", broken)
                held.close()
        assert events[-1].type == "response.failed"
        error = events[-1].response.error
        assert error is not None
        assert error.code == "server_error"
        assert "engine" in error.message
        assert "secret" not in error.message


def test_a_deadline_ends_an_answer(small_model: Any) -> None:
    with serving(small_model) as (served, service):
        late = served.post(
            RESPONSES, json={"input": "Hello", "max_output_tokens": 400, "min_tokens": 400, "timeout": 0.001}
        )
        assert late.status_code == 408
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert late.headers["x-should-retry"] == "false"
        assert settled(service).running == 0
        assert served.get("/health").status_code == 200
