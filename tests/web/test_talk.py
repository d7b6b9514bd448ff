"""One person's chat: what is sent, what replaces what, and that stopping stops."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from chat_server import ChatServer as Scripted
from chat_server import chat_server, image_parts, texts
from drawing import draw, encode

from minigpt4_serve.client.chat import ChatServer
from minigpt4_serve.pictures import ImageLimits
from minigpt4_serve.web.pictures import Shelf
from minigpt4_serve.web.talk import Options, Question, Talk


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with chat_server() as server:
        yield server


@pytest.fixture
async def server(scripted: Scripted) -> AsyncIterator[ChatServer]:
    async with aclosing(ChatServer(scripted.url)) as client:
        yield client


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(ImageLimits())


def _put(shelf: Shelf, color: str = "red") -> str:
    return shelf.put(encode(draw(color))).key


async def _ask(talk: Talk, server: ChatServer, shelf: Shelf, text: str, *pictures: str, instead: bool = False) -> str:
    question = Question(text=text, pictures=pictures, instead=instead)
    async for _ in talk.ask(server, shelf, question):
        pass
    return talk.exchanges[-1].text.strip()


async def _until(condition: object) -> None:
    for _ in range(1200):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it didn't happen")


async def test_a_follow_up_brings_the_whole_chat(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    talk = Talk()
    first = await _ask(talk, server, shelf, "What is it?", _put(shelf, "red"), _put(shelf, "blue"))
    assert first == "I see red, blue. You asked: What is it?"
    assert await _ask(talk, server, shelf, "And now?") == "I see red, blue. You asked: What is it? | And now?"
    sent = scripted.requests[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert len(image_parts(sent[0])) == 2
    assert texts(sent[1]).strip() == first
    assert talk.exchanges[-1].state == "done"
    assert talk.exchanges[-1].end is not None
    assert talk.exchanges[-1].first_words_s > 0


async def test_a_picture_without_words_is_described(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    assert "Describe this picture" in await _ask(Talk(), server, shelf, "  ", _put(shelf))


async def test_nothing_at_all_asks_nothing(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    talk = Talk()
    async for _ in talk.ask(server, shelf, Question()):
        pass
    assert talk.exchanges == []
    assert scripted.requests == []


async def test_stop_stops_at_the_server_and_keeps_the_words(
    scripted: Scripted, server: ChatServer, shelf: Shelf
) -> None:
    talk = Talk()
    asking = asyncio.create_task(_ask(talk, server, shelf, "a slow one"))
    await _until(lambda: talk.exchanges and talk.exchanges[-1].text)
    assert talk.busy
    talk.stop()
    assert (await asking).startswith("word0")
    await _until(lambda: scripted.left)
    assert talk.exchanges[-1].state == "stopped"
    assert not talk.busy
    await _ask(talk, server, shelf, "go on")
    assert texts(scripted.requests[-1]["messages"][1]).startswith("word0")


async def test_who_leaves_stops_the_server(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    talk = Talk()
    async with aclosing(talk.ask(server, shelf, Question(text="a slow one"))) as news:
        async for _ in news:
            if talk.exchanges[-1].text:
                break
    await _until(lambda: scripted.left == ["a slow one"])
    assert not talk.busy


async def test_a_second_question_at_the_same_time_is_not_asked(
    scripted: Scripted, server: ChatServer, shelf: Shelf
) -> None:
    talk = Talk()
    asking = asyncio.create_task(_ask(talk, server, shelf, "please wait"))
    await _until(lambda: scripted.requests)
    async for _ in talk.ask(server, shelf, Question(text="me too")):
        pass
    async for _ in talk.ask_again(server, shelf, Options()):
        pass
    scripted.gate.set()
    await asking
    assert [exchange.question for exchange in talk.exchanges] == ["please wait"]
    assert len(scripted.requests) == 1


async def test_answering_again_and_editing_replace_the_last_exchange(
    scripted: Scripted, server: ChatServer, shelf: Shelf
) -> None:
    talk, key = Talk(), _put(shelf)
    await _ask(talk, server, shelf, "What?", key)
    async for _ in talk.ask_again(server, shelf, Options(temperature=1.5)):
        pass
    assert [exchange.question for exchange in talk.exchanges] == ["What?"]
    assert len(scripted.requests[-1]["messages"]) == 1
    assert scripted.requests[-1]["temperature"] == 1.5
    answer = await _ask(talk, server, shelf, "What color?", talk.exchanges[-1].pictures[0].key, instead=True)
    assert answer == "I see red. You asked: What color?"
    assert len(talk.exchanges) == 1


async def test_after_a_failure_the_next_question_takes_its_pictures_along(
    scripted: Scripted, server: ChatServer, shelf: Shelf
) -> None:
    talk, key = Talk(), _put(shelf)
    scripted.stop()
    await _ask(talk, server, shelf, "What?", key)
    assert talk.exchanges[-1].state == "failed"
    assert talk.exchanges[-1].problem == "The server does not answer."
    assert talk.card is None
    scripted.start()
    assert await _ask(talk, server, shelf, "What now?") == "I see red. You asked: What now?"
    assert len(talk.exchanges) == 1


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("broken please", "The server failed while answering. Try again in a moment."),
        ("full", "The server is full. Try again in 61 seconds."),
        ("spent", "The page's share of the server is used up. Try again in 12 hours."),
        ("late", "The server's time for this answer ran out. Ask for a shorter one, or try again in a moment."),
    ],
)
async def test_failures_are_one_sentence(server: ChatServer, shelf: Shelf, question: str, problem: str) -> None:
    talk = Talk()
    await _ask(talk, server, shelf, question)
    assert talk.exchanges[-1].state == "failed"
    assert talk.exchanges[-1].problem == problem


async def test_a_picture_that_is_gone_is_said(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    talk = Talk()
    await _ask(talk, server, shelf, "What?", "unknown")
    assert talk.exchanges[-1].problem == "A picture is no longer in memory. Add it again."
    assert scripted.requests == []


async def test_boxes_are_drawn_on_the_newest_picture(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    talk = Talk()
    await _ask(talk, server, shelf, "boxes", _put(shelf))
    drawn = talk.exchanges[-1].drawn
    assert drawn is not None
    assert shelf.get(drawn.key) is drawn
    assert max(drawn.width, drawn.height) == 500  # small pictures are enlarged, so that labels can be read


async def test_starting_over_forgets_and_lets_pictures_go(scripted: Scripted, server: ChatServer, shelf: Shelf) -> None:
    talk, key = Talk(), _put(shelf)
    await _ask(talk, server, shelf, "What?", key)
    assert shelf.get(key) is not None
    talk.start_over()
    assert talk.exchanges == []
    assert shelf.get(key) is None
    assert await _ask(talk, server, shelf, "Hello") == "I see no picture. You asked: Hello"
