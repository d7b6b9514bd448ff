"""Bytes of bodies in this process."""

import asyncio
from typing import Any

import httpx
import pytest
from serving_app import serving
from starlette.types import Message, Receive, Scope, Send

from minigpt4_serve.errors import Overloaded
from minigpt4_serve.server.http import body_budget
from minigpt4_serve.server.http.body_budget import BodyBudget, LimitBodies, release_body
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

MIB = 2**20
CHAT = "/v1/chat/completions"


def test_a_key_may_have_half() -> None:
    budget = BodyBudget(100)
    budget.take("alice", 50)
    with pytest.raises(Overloaded) as refused:
        budget.take("alice", 1)
    assert refused.value.retry_after > 0
    budget.take("bob", 50)
    with pytest.raises(Overloaded):
        budget.take("carol", 1)
    budget.give_back("alice", 50)
    budget.take("carol", 30)
    assert budget.used == 80


class Reading:
    """An application that reads its body, and holds it until ``gate`` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.errors = 0
        self.releases = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while (await receive())["more_body"]:
                pass
        except Overloaded:
            self.errors += 1
            return
        if self.releases:
            release_body(scope)
        await self.gate.wait()


async def _send_nothing(_: Message) -> None:
    pass


def _request(chunks: int, size: int = MIB) -> tuple[Scope, Receive]:
    left = chunks

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": bytes(size), "more_body": left > 0}

    return {"type": "http"}, receive


async def test_bodies_are_bounded_until_they_are_prompts() -> None:
    reading = Reading()
    app = LimitBodies(reading, total=64 * MIB)
    tasks = [asyncio.create_task(app(*_request(8), _send_nothing)) for _ in range(300)]
    await asyncio.sleep(0.1)
    assert app._budget.used <= 32 * MIB
    assert reading.errors == 300 - 4
    small = asyncio.create_task(app(*_request(1, 60_000), _send_nothing))
    await asyncio.sleep(0.1)
    assert reading.errors == 300 - 4, "a small body always finds room"
    reading.releases = True
    reading.gate.set()
    await asyncio.gather(*tasks, small)
    assert app._budget.used == 0
    reading.gate.clear()
    tasks = [asyncio.create_task(app(*_request(8), _send_nothing)) for _ in range(300)]
    await asyncio.sleep(0.1)
    assert (app._budget.used, reading.errors) == (0, 300 - 4), "prompts don't count"
    reading.gate.set()
    await asyncio.gather(*tasks)


async def test_a_body_is_given_back_when_its_client_leaves() -> None:
    app = LimitBodies(Reading(), total=64 * MIB)
    task = asyncio.create_task(app(*_request(8), _send_nothing))
    await asyncio.sleep(0.01)
    assert app._budget.used == 8 * MIB - body_budget._FREE
    task.cancel()
    await asyncio.wait([task])
    assert app._budget.used == 0


def test_bodies_on_their_way_leave_room_for_other_keys(small_model: Any, tmp_path: Any) -> None:
    file = tmp_path / "keys.json"
    alice, bob = (add_key(file, name, KeyLimits()) for name in ("alice", "bob"))
    hello = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with serving(small_model, keys_file=file, max_bodies_bytes=1, max_body_bytes=2 * MIB) as (client, _):
        url = httpx.URL(client.base_url)

        async def hold(key: str) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection(url.host, url.port)
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            writer.write(f"{head}Content-Length: {2 * MIB}\r\n\r\n".encode() + bytes(2 * MIB - 1))
            await writer.drain()
            held.append(writer)
            return reader

        held: list[asyncio.StreamWriter] = []

        async def attack() -> None:
            await hold(alice)
            await asyncio.sleep(0.5)
            second = await hold(alice)
            assert (await second.readline()).startswith(b"HTTP/1.1 429 ")
            answer = await asyncio.to_thread(client.post, CHAT, json=hello, headers={"authorization": f"Bearer {bob}"})
            assert answer.status_code == 200
            for writer in held:
                writer.transport.abort()

        asyncio.run(attack())
