"""A whole chat as events: what servers say, and what they leave out."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from fakes.openai_replies import ENDLESS, TIMINGS, USAGE, Cut, ErrorEvent, Gate, Reply, refusal
from fakes.openai_requests import FIELDS
from fakes.openai_server import MODEL, OpenAIServer
from waiting import wait_until

from minigpt4_serve.client import ChatClient, Completed, ModelCard, Queued, Retrying, TextDelta
from minigpt4_serve.client.models import _choose
from minigpt4_serve.client.stream import read_stream
from minigpt4_serve.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerUnreachable,
    StreamInterrupted,
)


def _asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


Client = Callable[..., ChatClient]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Makes clients and closes them."""
    async with AsyncExitStack() as stack:

        def make(url: str, **settings: Any) -> ChatClient:
            server = ChatClient(url, **settings)
            stack.push_async_callback(server.aclose)
            return server

        yield make


async def _events(server: ChatClient, text: str, **options: Any) -> list[object]:
    return [event async for event in server.answer(_asked(text), **options)]


async def _to_the_end(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


_WORDS = 'data: {"choices": [{"index": 0, "delta": {"content": "a disc"}}]}'


def _read_events(*lines: str) -> AsyncIterator[object]:
    async def read() -> AsyncIterator[str]:
        for line in lines:
            yield line

    return read_stream(read())


def _text(events: list[object]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta)).strip()


@pytest.mark.parametrize(
    ("fields", "card"),
    [
        ({}, ModelCard(MODEL)),
        (
            {
                "max_images": 8,
                "context_length": 2048,
                "capabilities": {"max_beams": 10, "boxes": True},
                "defaults": {"temperature": 0.6, "top_p": 0.9, "max_tokens": 300},
            },
            ModelCard(
                MODEL,
                max_images=8,
                context_length=2048,
                max_beams=10,
                boxes=True,
                temperature=0.6,
                top_p=0.9,
                max_tokens=300,
            ),
        ),
        (
            {"max_images": "many", "capabilities": ["vision"], "defaults": {"temperature": None}},
            ModelCard(MODEL),
        ),
    ],
    ids=["any server", "ours", "odd"],
)
async def test_known_fields_of_the_model_card_are_read(fields: dict[str, Any], card: ModelCard, client: Client) -> None:
    with OpenAIServer(card=fields) as server:
        assert await client(server.url).card() == card


async def test_one_of_several_models_must_be_named(client: Client) -> None:
    with OpenAIServer(models=["a", "b"]) as server:
        with pytest.raises(ModelNotFound, match="several"):
            await client(server.url).card()
        with pytest.raises(ModelNotFound, match="several"):
            await _events(client(server.url), "Hello")
        named = client(server.url, model="b")
        assert (await named.card()).name == "b"
        await _events(named, "Hello")
        assert [request.body["model"] for request in server.requests] == ["b"]


@pytest.mark.parametrize(
    ("cards", "name"),
    [
        ([{"id": "a", "root": "a"}, {"id": "gpt-4o", "root": "a"}], "a"),
        ([{"id": "a", "root": "/models/a"}, {"id": "b", "root": "/models/a", "parent": None}], "a"),
        ([{"id": "a"}], "a"),
        ([{"id": "a", "root": "a"}, {"id": "b", "root": "b"}], None),
        ([{"id": "a", "root": None}, {"id": "b", "root": None}], None),
        ([{"id": "a"}, {"id": "b", "root": "a"}], "a"),
    ],
)
def test_names_of_one_model_are_no_choice(cards: list[dict[str, Any]], name: str | None) -> None:
    if name is None:
        with pytest.raises(ModelNotFound, match="several"):
            _choose({"data": cards}, None)
    else:
        assert _choose({"data": cards}, None).name == name
    assert _choose({"data": cards}, cards[-1]["id"]).name == cards[-1]["id"]


async def test_an_answer_ends_with_usage_and_timings(client: Client) -> None:
    with OpenAIServer(fields=FIELDS | {"beams"}, answers=["a disc"]) as server:
        events = await _events(client(server.url), "Hello", temperature=0.5, beams=2)
    assert _text(events) == "a disc"
    assert events[-1] == Completed("stop", USAGE["prompt_tokens"], 40, USAGE["completion_tokens"], TIMINGS)
    assert server.requests[0].body["temperature"] == 0.5
    assert server.requests[0].body["beams"] == 2


async def test_queue_positions_are_events(client: Client) -> None:
    gate = Gate()
    headers = {"x-minigpt4-queue-position": "3", "x-minigpt4-expected-wait": "12"}
    reply = Reply([gate, "my turn"], headers=headers, comments=("waiting, 2 ahead",))
    with OpenAIServer(answers=[reply]) as server:
        async with aclosing(client(server.url).answer(_asked("Hello"))) as events:
            assert await anext(events) == Queued(3, 12.0)
            assert await anext(events) == Queued(2)
            gate.open()
            assert _text([event async for event in events]) == "my turn"


async def test_closing_the_stream_aborts_the_request(client: Client) -> None:
    with OpenAIServer(answers=[ENDLESS]) as server:
        async with aclosing(client(server.url).answer(_asked("Hello"))) as events:
            assert isinstance(await anext(events), TextDelta)
            assert server.aborted == []
        await wait_until(lambda: server.aborted)


async def test_a_full_server_is_retried_within_the_budget(client: Client) -> None:
    with OpenAIServer(answers=[refusal(429, "overloaded", retry_after="61")] * 2) as server:
        with pytest.raises(Overloaded) as full:
            await _events(client(server.url, patience_s=10), "Hello")
        assert full.value.retry_after == 61
        patient = client(server.url, patience_s=100)
        async with aclosing(patient.answer(_asked("Hello"))) as events:
            assert await anext(events) == Retrying(61.0)
    assert len(server.requests) == 2


async def test_failures_repeat_nothing_and_end_with_the_outage(client: Client) -> None:
    with OpenAIServer(answers=[Reply(["half", ErrorEvent()]), "back again"]) as server:
        ours = client(server.url)
        with pytest.raises(EngineFailed) as failed:
            await _events(ours, "Hello")
        assert "secret" not in failed.value.message.lower()
        with pytest.raises(ModelNotFound):
            await client(server.url, model="another").card()
        server.stop()
        with pytest.raises(ServerUnreachable):
            await _events(ours, "Hello")
        with pytest.raises(ServerUnreachable):
            await ours.card(fresh=True)
        assert (await ours.card()).name == MODEL, "an older card will do"
        named = client(server.url, model="mine")
        assert await named.card() == ModelCard("mine")
        with pytest.raises(ServerUnreachable):
            await named.card(fresh=True)
        server.start()
        assert _text(await _events(ours, "Hello again")) == "back again"
    with pytest.raises(InvalidRequest):
        client("not an address")


async def test_a_server_stopped_in_an_answer_interrupts_it(client: Client) -> None:
    with OpenAIServer(answers=[ENDLESS]) as server:
        async with aclosing(client(server.url).answer(_asked("Hello"))) as events:
            assert isinstance(await anext(events), TextDelta)
            server.stop()
            with pytest.raises(StreamInterrupted, match="middle"):
                await _to_the_end(events)


@pytest.mark.parametrize("comments", [(), ("waiting, 2 ahead",)])
async def test_a_connection_lost_before_the_first_word_is_retried(
    client: Client, comments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt4_serve.client.retries._FIRST_DELAY_S", 0.01)
    lost = Reply([Cut()], comments=comments)
    with OpenAIServer(answers=[lost, lost, "a disc"]) as server:
        events = await _events(client(server.url), "Hello")
        assert _text(events) == "a disc"
        assert len([event for event in events if isinstance(event, Retrying)]) == 2
        server.answers = [lost] * 9
        with pytest.raises(ServerUnreachable):
            await _events(client(server.url), "Hello")
        assert len(server.answers) == 6, "it is retried twice"
        server.answers = [Reply(["half", Cut()]), "never"]
        with pytest.raises(StreamInterrupted):
            await _events(client(server.url), "Hello")
        assert len(server.answers) == 1, "the first word has been shown"


@pytest.mark.parametrize("mark", ["data: [DONE]", "data:[DONE]"])
async def test_done_ends_a_stream_without_finish_reason(mark: str) -> None:
    assert [event async for event in _read_events(_WORDS, mark)] == [TextDelta("a disc"), Completed("stop")]


@pytest.mark.parametrize(("lines", "kind"), [((_WORDS,), StreamInterrupted), ((), EngineFailed)])
async def test_a_stream_without_end_is_an_error(lines: tuple[str, ...], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await _to_the_end(_read_events(*lines))


async def test_a_deadline_passed_in_the_stream_is_raised() -> None:
    late = 'data: {"error": {"message": "secret", "code": "deadline_exceeded"}}'
    with pytest.raises(DeadlineExceeded, match="time for this request ran out"):
        await _to_the_end(_read_events(_WORDS, late))
