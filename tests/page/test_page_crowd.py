"""Fifty people at once: all are answered together, none sees another's words."""

import asyncio
import base64
from typing import Any

import httpx
import pytest
from drawing import draw, encode
from page_driving import answered, answers, ask, image_file, show
from page_serving import Gate, ScriptedServer
from playwright.sync_api import Page
from serving_app import settled
from waiting import wait_until

from minigpt4_serve.server.http.chat_service import ChatService

PEOPLE = 50
COLORS = ("red", "green", "blue", "yellow")


def _message(text: str, color: str | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if color:
        url = f"data:image/png;base64,{base64.b64encode(encode(draw(color))).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": parts}


async def test_fifty_chats_stream_at_once(scripted: ScriptedServer) -> None:
    gate = Gate()
    scripted.on_word(
        "wait", lambda request: [gate, f"I see {request.colors}. You asked: {' | '.join(request.questions)}"]
    )
    async with httpx.AsyncClient(
        base_url=scripted.url, timeout=120, limits=httpx.Limits(max_connections=PEOPLE)
    ) as client:

        async def talk(number: int) -> list[str]:
            messages = [_message(f"please wait for {number}", COLORS[number % 4])]
            first = await _answer(client, messages)
            messages += [{"role": "assistant", "content": first}, _message(f"and wait again {number}")]
            return [first, await _answer(client, messages)]

        talks = [asyncio.create_task(talk(number)) for number in range(PEOPLE)]
        await wait_until(lambda: scripted.running == PEOPLE)
        gate.open()
        found = await asyncio.gather(*talks)
    for number, (first, second) in enumerate(found):
        seen = f"I see ['{COLORS[number % 4]}']. You asked: please wait for {number}"
        assert first == seen
        assert second == f"{seen} | and wait again {number}"


async def test_the_embedded_model_answers_fifty(tiny_url: str, tiny_service: ChatService) -> None:
    async with httpx.AsyncClient(base_url=tiny_url, timeout=300, limits=httpx.Limits(max_connections=PEOPLE)) as client:

        async def talk(number: int) -> str:
            return await _answer(client, [_message("What color is the circle?", COLORS[number % 4])])

        found = await asyncio.gather(*(talk(number) for number in range(PEOPLE)))
    for number, text in enumerate(found):
        others = set(COLORS) - {COLORS[number % 4]}
        assert COLORS[number % 4] in text
        assert not [color for color in others if color in text]
    settled(tiny_service)


@pytest.mark.slow
def test_fifty_tabs_ask_at_once(visit: Any, scripted: ScriptedServer) -> None:
    gate = Gate()
    scripted.on_word(
        "wait", lambda request: [gate, f"I see {request.colors}. You asked: {' | '.join(request.questions)}"]
    )
    pages: list[Page] = []
    while len(pages) < PEOPLE:  # a browser opens at most six connections to one server
        pages.append(visit())
        pages += [visit.open_tab(pages[-1].context) for _ in range(4)]
    for number, page in enumerate(pages):
        show(page, image_file(COLORS[number % 4]))
        ask(page, f"please wait for {number}.")
    for _ in range(600):
        if scripted.running == PEOPLE:
            break
        pages[0].wait_for_timeout(100)
    assert scripted.running == PEOPLE
    gate.open()
    for number, page in enumerate(pages):
        answered(page, f"I see ['{COLORS[number % 4]}']. You asked: please wait for {number}.")
        assert answers(page).count() == 1


async def _answer(client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> str:
    body = {"messages": messages, "max_tokens": 40}
    response = await client.post("v1/chat/completions", json=body)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])
