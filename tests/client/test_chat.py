"""A whole chat as events: what servers say, and what they leave out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from chat_server import USAGE, chat_server

from minigpt4_serve.client import chat
from minigpt4_serve.client.chat import ChatServer, End, Full, ModelCard, Piece, Waiting
from minigpt4_serve.errors import (
    CutShort,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerUnreachable,
)


def _asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


Client = Callable[..., ChatServer]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Makes clients and closes them."""
    async with AsyncExitStack() as stack:

        def make(url: str, **settings: Any) -> ChatServer:
            server = ChatServer(url, **settings)
            stack.push_async_callback(server.aclose)
            return server

        yield make


async def _events(server: ChatServer, text: str, **options: Any) -> list[object]:
    return [event async for event in server.answer(_asked(text), **options)]


async def _to_the_end(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


_WORDS = 'data: {"choices": [{"index": 0, "delta": {"content": "a disc"}}]}'


def _events_of(*lines: str) -> AsyncIterator[object]:
    async def read() -> AsyncIterator[str]:
        for line in lines:
            yield line

    return chat._events(read(), 0)


def _text(events: list[object]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece)).strip()


@pytest.mark.parametrize(
    ("told", "card"),
    [
        ({}, ModelCard("minigpt4-test")),
        (
            {
                "max_images": 8,
                "context_length": 2048,
                "capabilities": {"max_beams": 10, "boxes": True},
                "defaults": {"temperature": 0.6, "top_p": 0.9, "max_tokens": 300},
            },
            ModelCard(
                "minigpt4-test",
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
            ModelCard("minigpt4-test"),
        ),
    ],
    ids=["any server", "ours", "odd"],
)
async def test_the_card_is_read_as_far_as_it_goes(told: dict[str, Any], card: ModelCard, client: Client) -> None:
    with chat_server(**told) as server:
        assert await client(server.url).card() == card


async def test_an_answer_ends_with_what_it_cost(client: Client) -> None:
    with chat_server() as server:
        events = await _events(client(server.url), "Hello", temperature=0.5, beams=2)
    assert _text(events) == "I see no picture. You asked: Hello"
    assert events[-1] == End("stop", USAGE["prompt_tokens"], 40, USAGE["completion_tokens"], {"total_s": 0.4})
    assert server.requests[0]["temperature"] == 0.5
    assert server.requests[0]["beams"] == 2


async def test_the_place_in_the_line_is_told(client: Client) -> None:
    with chat_server() as server:
        async with aclosing(client(server.url).answer(_asked("please wait"))) as events:
            assert await anext(events) == Waiting(3, 12.0)
            assert await anext(events) == Waiting(2)
            server.gate.set()
            assert _text([event async for event in events]).endswith("please wait")


async def test_leaving_early_stops_the_server(client: Client) -> None:
    with chat_server() as server:
        async with aclosing(client(server.url).answer(_asked("a slow one"))) as events:
            assert isinstance(await anext(events), Piece)
        for _ in range(1200):
            if server.left:
                break
            await asyncio.sleep(0.05)
    assert server.left == ["a slow one"]


async def test_a_full_server_is_asked_again_while_patience_lasts(client: Client) -> None:
    with chat_server() as server:
        with pytest.raises(Overloaded) as full:
            await _events(client(server.url, patience_s=10), "full")
        assert full.value.retry_after == 61
        patient = client(server.url, patience_s=100)
        async with aclosing(patient.answer(_asked("full"))) as events:
            assert await anext(events) == Full(61.0)
    assert len(server.requests) == 2


async def test_failures_are_ours_and_repeat_nothing(client: Client) -> None:
    with chat_server() as server:
        ours = client(server.url)
        with pytest.raises(EngineFailed) as failed:
            await _events(ours, "broken please")
        assert "secret" not in failed.value.message
        with pytest.raises(ModelNotFound):
            await client(server.url, model="another").card()
        server.stop()
        with pytest.raises(ServerUnreachable):
            await _events(ours, "Hello")
        with pytest.raises(ServerUnreachable):
            await ours.card(fresh=True)
        assert (await ours.card()).name == "minigpt4-test", "an older card will do"
        named = client(server.url, model="mine")
        assert await named.card() == ModelCard("mine")
        with pytest.raises(ServerUnreachable):
            await named.card(fresh=True)
        server.start()
        assert _text(await _events(ours, "Hello again")).endswith("Hello again")
    with pytest.raises(InvalidRequest):
        client("not an address")


async def test_a_server_that_vanishes_in_the_middle(client: Client) -> None:
    with chat_server() as server:
        async with aclosing(client(server.url).answer(_asked("a slow one"))) as events:
            assert isinstance(await anext(events), Piece)
            await asyncio.to_thread(server.stop)
            with pytest.raises(CutShort, match="middle"):
                await _to_the_end(events)


@pytest.mark.parametrize("mark", ["data: [DONE]", "data:[DONE]"])
async def test_an_end_mark_is_an_end_even_without_a_reason(mark: str) -> None:
    assert [event async for event in _events_of(_WORDS, mark)] == [Piece("a disc"), End("stop")]


@pytest.mark.parametrize(("lines", "kind"), [((_WORDS,), CutShort), ((), ServerUnreachable)])
async def test_neither_mark_nor_reason_is_a_cut_answer(lines: tuple[str, ...], kind: type[Exception]) -> None:
    with pytest.raises(ServerUnreachable) as cut:
        await _to_the_end(_events_of(*lines))
    assert type(cut.value) is kind


async def test_a_deadline_that_passes_in_the_middle_is_told() -> None:
    late = 'data: {"error": {"message": "secret", "code": "deadline_exceeded"}}'
    with pytest.raises(DeadlineExceeded, match="time for this request ran out"):
        await _to_the_end(_events_of(_WORDS, late))
