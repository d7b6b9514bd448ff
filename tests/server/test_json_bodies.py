"""Where the JSON of bodies is parsed."""

import asyncio
import threading
from typing import Any

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.http import json_bodies
from minigpt4_serve.server.http.json_bodies import read_json_body
from minigpt4_serve.server.openai.chat_request import read_json_object

SMALL = b'{"messages": []}'
LARGE = b'{"messages": "' + b"a" * json_bodies._LARGE + b'"}'


class Parser:
    """Parses in its thread's turn, and counts.

    Attributes:
        gate: large bodies wait for it.
    """

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.gate = threading.Event()

    def __call__(self, body: bytes, content: str) -> dict[str, Any]:
        self.threads.append(threading.current_thread())
        if len(body) > len(SMALL):
            assert self.gate.wait(60)
        return read_json_object(body, content)


async def test_large_bodies_delay_no_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser()
    monkeypatch.setattr(json_bodies, "read_json_object", parser)
    large = [asyncio.create_task(read_json_body(LARGE, "messages")) for _ in range(5)]
    await asyncio.sleep(0)
    small = [await read_json_body(SMALL, "messages") for _ in range(3)]  # while a large one is parsed
    parser.gate.set()
    assert [len(body["messages"]) for body in await asyncio.gather(*large)] == [json_bodies._LARGE] * 5
    assert small == [{"messages": []}] * 3
    here = [thread is threading.current_thread() for thread in parser.threads]
    assert sorted(here) == [False] * 5 + [True] * 3
    assert len({thread for thread in parser.threads if thread is not threading.current_thread()}) == 1


@pytest.mark.parametrize("body", [b"{", b"[" + b" " * json_bodies._LARGE + b"]", b"{" + b" " * json_bodies._LARGE])
async def test_refusals_are_the_same_in_a_thread(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON object with 'messages'"):
        await read_json_body(body, "messages")
