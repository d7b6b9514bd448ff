"""One person's chat: what is sent, what replaces what, and that stopping stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from drawing import draw, encode
from fakes.openai_replies import Gate
from fakes.openai_requests import image_parts
from fakes.openai_server import OpenAIServer
from waiting import wait_until

from minigpt4_serve.client.chat_client import ChatClient
from minigpt4_serve.images import ImageLimits
from minigpt4_serve.web.pictures import Shelf
from minigpt4_serve.web.talk import Options, Question, Talk


@pytest.fixture
async def server(scripted: OpenAIServer) -> AsyncIterator[ChatClient]:
    async with aclosing(ChatClient(scripted.origin)) as client:
        yield client


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(ImageLimits())


def _put(shelf: Shelf, color: str = "red") -> str:
    return shelf.put(encode(draw(color))).key


async def _ask(talk: Talk, server: ChatClient, shelf: Shelf, text: str, *pictures: str, instead: bool = False) -> str:
    question = Question(text=text, pictures=pictures, instead=instead)
    async for _ in talk.ask(server, shelf, question):
        pass
    return talk.exchanges[-1].text.strip()


async def test_a_follow_up_sends_the_whole_chat(scripted: OpenAIServer, server: ChatClient, shelf: Shelf) -> None:
    talk = Talk()
    first = await _ask(talk, server, shelf, "What is it?", _put(shelf, "red"), _put(shelf, "blue"))
    assert first == "I see red, blue. You asked: What is it?"
    assert await _ask(talk, server, shelf, "And now?") == "I see red, blue. You asked: What is it? | And now?"
    sent = scripted.requests[-1].body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert len(image_parts(sent[0])) == 2
    assert scripted.requests[-1].transcript[1] == ("assistant", first)
    assert talk.exchanges[-1].state == "done"
    assert talk.exchanges[-1].end is not None
    assert talk.exchanges[-1].first_words_s > 0


async def test_an_image_without_a_question_is_described(server: ChatClient, shelf: Shelf) -> None:
    assert "Describe this picture" in await _ask(Talk(), server, shelf, "  ", _put(shelf))


async def test_an_empty_question_sends_no_request(scripted: OpenAIServer, server: ChatClient, shelf: Shelf) -> None:
    talk = Talk()
    async for _ in talk.ask(server, shelf, Question()):
        pass
    assert talk.exchanges == []
    assert scripted.requests == []


async def test_stop_aborts_the_request_and_keeps_the_text(
    scripted: OpenAIServer, server: ChatClient, shelf: Shelf
) -> None:
    talk = Talk()
    asking = asyncio.create_task(_ask(talk, server, shelf, "a slow one"))
    await wait_until(lambda: talk.exchanges and talk.exchanges[-1].text)
    assert talk.busy
    talk.stop()
    assert (await asking).startswith("word0")
    await wait_until(lambda: scripted.aborted)
    assert talk.exchanges[-1].state == "stopped"
    assert not talk.busy
    await _ask(talk, server, shelf, "go on")
    assert scripted.requests[-1].transcript[1][1].startswith("word0")


async def test_closing_the_view_aborts_the_request(scripted: OpenAIServer, server: ChatClient, shelf: Shelf) -> None:
    talk = Talk()
    async with aclosing(talk.ask(server, shelf, Question(text="a slow one"))) as news:
        async for _ in news:
            if talk.exchanges[-1].text:
                break
    await wait_until(lambda: [request.text for request in scripted.aborted] == ["a slow one"])
    assert not talk.busy


async def test_a_second_question_during_an_answer_is_ignored(
    scripted: OpenAIServer, gate: Gate, server: ChatClient, shelf: Shelf
) -> None:
    talk = Talk()
    asking = asyncio.create_task(_ask(talk, server, shelf, "please wait"))
    await wait_until(lambda: scripted.requests)
    async for _ in talk.ask(server, shelf, Question(text="me too")):
        pass
    async for _ in talk.ask_again(server, shelf, Options()):
        pass
    gate.open()
    await asking
    assert [exchange.question for exchange in talk.exchanges] == ["please wait"]
    assert len(scripted.requests) == 1


async def test_regenerate_and_edit_replace_the_last_exchange(
    scripted: OpenAIServer, server: ChatClient, shelf: Shelf
) -> None:
    talk, key = Talk(), _put(shelf)
    await _ask(talk, server, shelf, "What?", key)
    async for _ in talk.ask_again(server, shelf, Options(temperature=1.5)):
        pass
    assert [exchange.question for exchange in talk.exchanges] == ["What?"]
    assert len(scripted.requests[-1].body["messages"]) == 1
    assert scripted.requests[-1].body["temperature"] == 1.5
    answer = await _ask(talk, server, shelf, "What color?", talk.exchanges[-1].pictures[0].key, instead=True)
    assert answer == "I see red. You asked: What color?"
    assert len(talk.exchanges) == 1


async def test_after_a_failure_images_go_to_the_next_question(
    scripted: OpenAIServer, server: ChatClient, shelf: Shelf
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
async def test_failures_are_one_sentence(server: ChatClient, shelf: Shelf, question: str, problem: str) -> None:
    talk = Talk()
    await _ask(talk, server, shelf, question)
    assert talk.exchanges[-1].state == "failed"
    assert talk.exchanges[-1].problem == problem


async def test_an_evicted_image_is_reported(scripted: OpenAIServer, server: ChatClient, shelf: Shelf) -> None:
    talk = Talk()
    await _ask(talk, server, shelf, "What?", "unknown")
    assert talk.exchanges[-1].problem == "A picture is no longer in memory. Add it again."
    assert scripted.requests == []


async def test_boxes_are_drawn_on_the_newest_image(scripted: OpenAIServer, server: ChatClient, shelf: Shelf) -> None:
    talk = Talk()
    await _ask(talk, server, shelf, "boxes", _put(shelf))
    drawn = talk.exchanges[-1].drawn
    assert drawn is not None
    assert shelf.get(drawn.key) is drawn
    assert max(drawn.width, drawn.height) == 500  # small pictures are enlarged, so that labels can be read


async def test_start_over_frees_exchanges_and_images(scripted: OpenAIServer, server: ChatClient, shelf: Shelf) -> None:
    talk, key = Talk(), _put(shelf)
    await _ask(talk, server, shelf, "What?", key)
    assert shelf.get(key) is not None
    talk.start_over()
    assert talk.exchanges == []
    assert shelf.get(key) is None
    assert await _ask(talk, server, shelf, "Hello") == "I see no picture. You asked: Hello"
