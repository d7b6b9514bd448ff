"""SIGHUP on a server with a single engine: requests wait while it is replaced, then the new settings apply."""

import asyncio
import json
import signal

import httpx
import pytest
from golden_chats import ConvertedServer

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40, "temperature": 0}


async def test_requests_wait_while_the_only_engine_is_replaced(converted_v2: ConvertedServer) -> None:
    server = converted_v2.server
    headers = {"authorization": f"Bearer {converted_v2.key}"}
    before = {name: server.replicas(name) for name in ("engine", "http")}
    replaced = asyncio.Event()
    statuses: list[int] = []
    # The process that is replaced may close a connection: each request opens its own.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=240, limits=limits, headers=headers) as client:

        async def ask_until_replaced() -> None:
            while not replaced.is_set():
                answer = await client.post("/v1/chat/completions", json=QUESTION)
                statuses.append(answer.status_code)

        async def max_images() -> int:
            (card,) = (await client.get("/v1/models")).json()["data"]
            return int(card["max_images"])

        assert await max_images() != 3
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ask_until_replaced())
            converted_v2.settings_file.write_text(json.dumps(converted_v2.settings | {"max_images_per_request": 3}))
            server.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(server.wait_for, "Ready again", 500)
            replaced.set()
        assert set(statuses) == {200}
        for name, pids in before.items():
            await server.until_replaced(name, pids)
        assert await max_images() == 3
