"""A talk as the browser gets it: plain data, no HTML. The script builds the page from it, words as words.

A web page that the model wrote is the one exception: it travels as text, and the browser runs it in a frame without any
right but to show itself.
"""

import itertools
import math
import re
import time
from typing import Any

from minigpt4_serve.boxes import colour_phrases
from minigpt4_serve.client.chat_client import ChatClient, Completed, ModelCard, Queued, Retrying
from minigpt4_serve.web.pictures import ShownPicture
from minigpt4_serve.web.talk import Exchange, Talk
from minigpt4_serve.web.tasks import EXAMPLES, GO_ON, TAGS, TASKS, as_dicts

__all__ = ["static_view", "view"]

_FENCE = re.compile(r"```([\w+-]*)[^\S\n]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_PAGE = re.compile(r"(?:<!doctype html|<html[\s>]).*?(?:</html>|\Z)", re.DOTALL | re.IGNORECASE)
_MAX_TOKENS = 300
_FALLBACK_CONTEXT = 2048
_numbers = itertools.count(time.time_ns() // 1_000_000)
"""Of views, in the order in which they were made: also after this process was started anew."""


def static_view(max_picture_bytes: int) -> dict[str, Any]:
    """What never changes while the page runs."""
    return {
        "tasks": as_dicts(TASKS),
        "tags": as_dicts(TAGS),
        "examples": as_dicts(EXAMPLES),
        "max_picture_bytes": max_picture_bytes,
    }


def view(talk: Talk, server: ChatClient) -> dict[str, Any]:
    """Everything that the page shows of one talk."""
    last = talk.exchanges[-1] if talk.exchanges else None
    go_on = GO_ON.get(last.question) if last and last.state == "done" else None
    return {
        # Later ones have larger numbers: answers to events overtake each other, and the browser keeps the newest.
        "number": next(_numbers),
        "server": {
            "name": talk.card.name if talk.card else None,
            "trouble": talk.trouble,
            "address": server.base_url,
        },
        "settings": _settings(talk.card) if talk.card else None,
        "boxes": talk.card is not None and talk.card.boxes,
        "busy": talk.busy and last is not None and last.state in ("asked", "writing"),
        "exchanges": [_exchange(exchange, talk.card) for exchange in talk.exchanges],
        "go_on": as_dicts([go_on]) if go_on else [],
    }


def _settings(card: ModelCard) -> dict[str, Any]:
    """Where the sliders stand, and their ends; a slider that wasn't moved sends nothing."""
    longest = card.context_length or _FALLBACK_CONTEXT
    return {
        "temperature": 1.0 if card.temperature is None else card.temperature,
        "top_p": 1.0 if card.top_p is None else card.top_p,
        "max_tokens": min(card.max_tokens or _MAX_TOKENS, longest),
        "longest": longest,
        "max_beams": card.max_beams,
        "max_images": card.max_images,
    }


def _exchange(exchange: Exchange, card: ModelCard | None) -> dict[str, Any]:
    finished = exchange.state not in ("asked", "writing")
    return {
        "question": exchange.question,
        "pictures": [_picture(picture) for picture in exchange.pictures],
        "state": exchange.state,
        "waiting": _waiting(exchange.waiting),
        "pieces": _pieces(exchange.text.strip() if finished else exchange.text, finished=finished),
        "drawn": _picture(exchange.drawn) if exchange.drawn else None,
        "problem": exchange.problem,
        "notes": _notes(exchange),
    }


def _picture(shown: ShownPicture) -> dict[str, Any]:
    return {"key": shown.key, "width": shown.width, "height": shown.height}


def _pieces(text: str, *, finished: bool) -> list[dict[str, Any]]:
    """The answer as words, phrases with a colour, code, and web pages."""
    pieces: list[dict[str, Any]] = []
    end = 0
    for match in _FENCE.finditer(text):
        pieces += _words_or_page(text[end : match.start()], finished=True)
        code = match[2]
        kind = "page" if match[1].lower() == "html" or _PAGE.match(code.lstrip()) else "code"
        pieces.append({"kind": kind, "text": code})
        end = match.end()
    return pieces + _words_or_page(text[end:], finished=finished)


def _words_or_page(text: str, *, finished: bool) -> list[dict[str, Any]]:
    page = _PAGE.search(text)
    if page is None:
        return _words(text, finished=finished)
    rest = _words(text[page.end() :], finished=finished)
    return [*_words(text[: page.start()], finished=True), {"kind": "page", "text": page[0]}, *rest]


def _words(text: str, *, finished: bool) -> list[dict[str, Any]]:
    if not text.strip():
        return []
    return [
        {"kind": "words", "text": words} if colour is None else {"kind": "phrase", "text": words, "colour": colour}
        for words, colour in colour_phrases(text, finished=finished)
    ]


def _waiting(waiting: Queued | Retrying | None) -> str:
    match waiting:
        case Queued(ahead, expected_s):
            place = (
                "You are next"
                if ahead == 0
                else f"{ahead} {'question is' if ahead == 1 else 'questions are'} ahead of yours"
            )
            return f"{place}{f', about {math.ceil(expected_s)} s' if expected_s else ''}."
        case Retrying(retry_in_s):
            return f"The server is full. It is asked again in {max(1, math.ceil(retry_in_s))} s."
    return ""


def _notes(exchange: Exchange) -> list[str]:
    """What stands small below an answer."""
    notes = ["Stopped."] if exchange.state == "stopped" else []
    end = exchange.end
    if end is None:
        return notes
    notes.append(_timing(exchange, end))
    if end.reason == "length":
        notes.append("Cut at the longest answer that the settings allow.")
    if end.dropped_messages:
        notes.append(f"The chat is long: the words of its oldest {end.dropped_messages} messages were left out.")
    return notes


def _timing(exchange: Exchange, end: Completed) -> str:
    parts = [f"First words after {_seconds(exchange.first_words_s)}" if exchange.text else "No words"]
    if end.completion_tokens:
        parts.append(f"{end.completion_tokens} tokens in {_seconds(exchange.seconds)}")
    if end.prompt_tokens and end.cached_tokens is not None:
        parts.append(f"{end.cached_tokens} of {end.prompt_tokens} prompt tokens from the cache")
    return " · ".join(parts)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
