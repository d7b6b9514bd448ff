"""What the browser gets: plain data in which words stay words."""

import json
from typing import Any

import pytest

from minigpt4_serve.client.chat_client import ChatClient, Completed, ModelCard, Queued, Retrying
from minigpt4_serve.web.talk import Exchange, Talk
from minigpt4_serve.web.tasks import EXAMPLES, EXAMPLES_FOLDER, GO_ON, TASKS
from minigpt4_serve.web.view import static_view, view

SERVER = ChatClient("http://127.0.0.1:9")


def _view(*exchanges: Exchange, card: ModelCard | None = None) -> dict[str, Any]:
    talk = Talk()
    talk.card = card
    talk.exchanges.extend(exchanges)
    return view(talk, SERVER)


def _shown(text: str, state: Any = "done") -> list[dict[str, str]]:
    pieces: list[dict[str, str]] = _view(Exchange("Q", (), text=text, state=state))["exchanges"][0]["pieces"]
    return pieces


def _words(text: str) -> dict[str, str]:
    return {"kind": "words", "text": text}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("  Two fish.\n\nOne is red. ", [_words("Two fish.\n\nOne is red.")]),
        ("<b>bold</b> & &lt;", [_words("<b>bold</b> & &lt;")]),
        (
            "<p>a dog</p> {<1><2><30><40>} and <p>a cat</p> {<5><6><7><8>}.",
            [
                {"kind": "phrase", "text": "a dog", "colour": "#e6194b"},
                _words(" and "),
                {"kind": "phrase", "text": "a cat", "colour": "#3cb44b"},
                _words("."),
            ],
        ),
        (
            "Here:\n```html\n<h1>Hi</h1>\n```\nDone.",
            [_words("Here:\n"), {"kind": "page", "text": "<h1>Hi</h1>"}, _words("\nDone.")],
        ),
        (
            "Here: <!DOCTYPE html><html><body>Hi</body></html> Done.",
            [
                _words("Here: "),
                {"kind": "page", "text": "<!DOCTYPE html><html><body>Hi</body></html>"},
                _words(" Done."),
            ],
        ),
        ("```\n<html><body>", [{"kind": "page", "text": "<html><body>"}]),
        ("```py\nprint(1)\n```", [{"kind": "code", "text": "print(1)"}]),
    ],
)
def test_an_answer_in_pieces(text: str, pieces: list[dict[str, str]]) -> None:
    assert _shown(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A dog ", [_words("A dog ")]),
        ("<p>a dog</p> {<1><2", [_words("a dog")]),
        ("<p>a do", [_words("a do")]),
        ("<p>a dog</", [_words("a dog")]),
    ],
)
def test_half_written_notation_stays_hidden(text: str, pieces: list[dict[str, str]]) -> None:
    assert _shown(text, "writing") == pieces


@pytest.mark.parametrize(
    ("exchange", "notes"),
    [
        (Exchange("Q", (), state="asked"), []),
        (Exchange("Q", (), text="Half", state="stopped"), ["Stopped."]),
        (
            Exchange(
                "Q", (), text="A", state="done", end=Completed("stop", 52, 40, 14), first_words_s=0.21, seconds=1.25
            ),
            ["First words after 210 ms · 14 tokens in 1.2 s · 40 of 52 prompt tokens from the cache"],
        ),
        (
            Exchange("Q", (), text="A", state="done", end=Completed("length", dropped_messages=2), first_words_s=2),
            [
                "First words after 2.0 s",
                "Cut at the longest answer that the settings allow.",
                "The chat is long: the words of its oldest 2 messages were left out.",
            ],
        ),
    ],
)
def test_notes_below_an_answer(exchange: Exchange, notes: list[str]) -> None:
    assert _view(exchange)["exchanges"][0]["notes"] == notes


@pytest.mark.parametrize(
    ("waiting", "words"),
    [
        (None, ""),
        (Queued(0), "You are next."),
        (Queued(1, 0.4), "1 question is ahead of yours, about 1 s."),
        (Queued(3, 12.2), "3 questions are ahead of yours, about 13 s."),
        (Retrying(2.5), "The server is full. It is asked again in 3 s."),
    ],
)
def test_waiting_in_words(waiting: Queued | Retrying | None, words: str) -> None:
    assert _view(Exchange("Q", (), waiting=waiting))["exchanges"][0]["waiting"] == words


def test_sliders_stand_where_the_model_does() -> None:
    card = ModelCard("m", context_length=512, max_beams=10, temperature=0.0, top_p=0.9, max_tokens=300, max_images=4)
    expected = {"temperature": 0.0, "top_p": 0.9, "max_tokens": 300, "longest": 512, "max_beams": 10, "max_images": 4}
    assert _view(card=card)["settings"] == expected
    assert _view(card=ModelCard("m"))["settings"]["max_beams"] == 1
    assert _view(card=card)["boxes"] is False
    assert _view(card=ModelCard("m", boxes=True))["boxes"] is True
    assert _view()["settings"] is None


def test_a_story_can_go_on() -> None:
    story = next(task for task in TASKS if task.label == "Tell a story")
    assert _view(Exchange(story.question, (), text="Once", state="done"))["go_on"][0]["label"] == "Go on with the story"
    assert _view(Exchange(story.question, (), text="Once", state="writing"))["go_on"] == []
    assert _view(Exchange("What?", (), text="Once", state="done"))["go_on"] == []
    assert set(GO_ON) >= {story.question, GO_ON[story.question].question}


def test_everything_can_travel() -> None:
    assert json.loads(json.dumps(static_view(100)))["max_picture_bytes"] == 100
    assert all((EXAMPLES_FOLDER / example.picture).is_file() for example in EXAMPLES)
    first, second = _view(), _view()
    assert first.pop("number") < second.pop("number")
    assert json.dumps(first) == json.dumps(second)
    talk = Talk()
    assert view(talk, SERVER) != view(talk, SERVER)  # the browser must notice each
