"""The synchronous facade: the same events, and an abort however the iteration ends."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing

import pytest
from fakes.openai_replies import ENDLESS
from fakes.openai_server import MODEL, OpenAIServer
from waiting import wait_until

from minigpt4_serve.client import Completed, Event, SyncChatClient, TextDelta
from minigpt4_serve.client.sync import iterate

QUESTION = [{"role": "user", "content": "Q"}]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(answers=["a disc"], default=ENDLESS) as running:
        yield running


@pytest.fixture
def client(server: OpenAIServer) -> Iterator[SyncChatClient]:
    made = SyncChatClient(server.url)
    yield made
    made.close()


def interrupt(events: Generator[Event]) -> None:
    """Ctrl-C after three events."""
    with closing(events):
        for number, _ in enumerate(events):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)


def test_events_and_card_are_those_of_the_async_client(client: SyncChatClient) -> None:
    assert client.card().name == MODEL
    *deltas, end = client.answer(QUESTION)
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == ["a ", "disc"]
    assert isinstance(end, Completed)


def test_closing_the_iteration_aborts_the_request(server: OpenAIServer, client: SyncChatClient) -> None:
    list(client.answer(QUESTION))
    events = client.answer(QUESTION)
    assert isinstance(next(events), TextDelta)
    events.close()
    asyncio.run(wait_until(lambda: server.aborted))


def test_ctrl_c_aborts_the_request_and_the_client_stays_usable(server: OpenAIServer, client: SyncChatClient) -> None:
    list(client.answer(QUESTION))
    with pytest.raises(KeyboardInterrupt):
        interrupt(client.answer(QUESTION))
    asyncio.run(wait_until(lambda: server.aborted))
    server.answers = ["again"]
    assert TextDelta("again") in list(client.answer(QUESTION))


def test_an_interrupted_loop_still_closes_the_generator() -> None:
    steps: list[str] = []

    async def items() -> AsyncGenerator[int]:
        try:
            yield 1
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)  # outside of the task
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            steps.append("canceled")
            raise
        finally:
            await asyncio.sleep(0)
            steps.append("closed")

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(iterate(loop, items()))
    finally:
        loop.close()
    assert steps == ["canceled", "closed"]
