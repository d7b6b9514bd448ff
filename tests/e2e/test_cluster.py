"""Three engines on a real Ray cluster: pictures find their replica; whatever breaks, nobody is left without a word."""

import asyncio
import base64
import json
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from drawing import encode
from PIL import Image
from processes import Server

from minigpt4_serve.serving.metrics import METRICS

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

CHAT = "/v1/chat/completions"


@dataclass
class Outcome:
    """What a client saw of its request."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    body: str = ""

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.body.splitlines() if line.startswith("data: {")]

    @property
    def whole(self) -> bool:
        reasons = [choice["finish_reason"] for event in self.events for choice in event.get("choices", ())]
        return self.status == 200 and self.body.endswith("data: [DONE]\n\n") and reasons[-1:] in (["stop"], ["length"])

    @property
    def error(self) -> str | None:
        found = [event["error"]["code"] for event in self.events if "error" in event]
        return found[0] if found else None


def _body(picture: int, turns: int = 1, tokens: int = 8) -> dict[str, Any]:
    """A chat about a picture unlike all others; every answer has this length."""
    rng = random.Random(picture)
    image = Image.new("RGB", (64, 64), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    image.putpixel((1, 1), (picture % 256, picture // 256, 7))
    url = "data:image/png;base64," + base64.b64encode(encode(image)).decode()
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        text = {"type": "text", "text": f"What is in this picture, and why? ({turn})"}
        content = [text] if turn else [{"type": "image_url", "image_url": {"url": url}}, text]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "A circle."}]
    fixed = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "stream": True}
    return {"messages": messages[:-1], "stream_options": {"include_usage": True}, **fixed}


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], begun: asyncio.Event | None = None) -> Outcome:
    outcome = Outcome()
    async with client.stream("POST", CHAT, json=body) as answer:
        outcome.status, outcome.headers = answer.status_code, answer.headers
        async for piece in answer.aiter_text():
            outcome.body += piece
            if begun is not None and '"content":"' in outcome.body:
                begun.set()
    return outcome


@pytest.fixture
async def client(cluster: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120, limits=limits) as client:
        yield client


async def _engines(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    return list((await client.get("/status")).json()["engines"])


async def _until(client: httpx.AsyncClient, true: Callable[[list[dict[str, Any]]], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true(engines := await _engines(client)):
        assert time.monotonic() < deadline, engines
        await asyncio.sleep(0.5)


async def _all_idle(client: httpx.AsyncClient) -> None:
    """No slot, no place in the line and no block is held by anybody."""
    held = ("running", "waiting", "blocks_held")
    await _until(client, lambda engines: all(engine[name] == 0 for engine in engines for name in held), 60)


async def test_follow_ups_reach_the_replica_with_their_picture(client: httpx.AsyncClient) -> None:
    rng = random.Random(1)
    gate = asyncio.Semaphore(6)

    async def turn(picture: int, number: int) -> bool:
        async with gate:
            outcome = await _ask(client, _body(picture, turns=number))
        assert outcome.whole, outcome
        usage = outcome.events[-1]["usage"]
        # The picture and its first question make up the most of it; another replica knows neither.
        return bool(usage["prompt_tokens_details"]["cached_tokens"] > 0.5 * usage["prompt_tokens"])

    pictures = list(range(24))
    hits: list[bool] = []
    for number in (1, 2, 3):
        rng.shuffle(pictures)  # in order, round-robin would pass, too
        found = await asyncio.gather(*(turn(picture, number) for picture in pictures))
        hits += found if number > 1 else []
    assert sum(hits) >= 0.9 * len(hits), f"{sum(hits)} of {len(hits)}"
    await _all_idle(client)
    assert sum(engine["requests"] > 2 for engine in await _engines(client)) == 3, "not all engines take part"


async def test_overload_is_refused_at_once_and_the_rest_is_answered(client: httpx.AsyncClient) -> None:
    capacity = 3 * (8 + 4)
    outcomes = await asyncio.gather(*(_ask(client, _body(1000 + i, tokens=24)) for i in range(5 * capacity)))
    statuses = {outcome.status for outcome in outcomes}
    assert statuses == {200, 429}
    for outcome in outcomes:
        if outcome.status == 200:
            assert outcome.whole, outcome
            continue
        assert int(outcome.headers["retry-after"]) >= 1
        assert json.loads(outcome.body)["error"]["code"] == "overloaded"
    waited = [outcome for outcome in outcomes if "x-minigpt4-queue-position" in outcome.headers]
    assert waited
    assert all(outcome.body.startswith(": waiting") for outcome in waited)
    await _all_idle(client)


async def test_a_client_that_leaves_is_gone_from_the_engine(client: httpx.AsyncClient) -> None:
    aborted = sum(engine["aborted"] for engine in await _engines(client))
    for number in range(3):
        async with client.stream("POST", CHAT, json=_body(2000 + number, tokens=300)) as answer:
            await anext(answer.aiter_text())
    await _all_idle(client)
    assert sum(engine["aborted"] for engine in await _engines(client)) == aborted + 3


async def test_a_killed_engine_loses_nobody_who_had_not_begun(cluster: Server, client: httpx.AsyncClient) -> None:
    before = {engine["name"] for engine in await _engines(client)}
    begun = [asyncio.Event() for _ in range(15)]
    streams = [asyncio.create_task(_ask(client, _body(3000 + i, tokens=300), begun[i])) for i in range(len(begun))]
    await asyncio.gather(*(event.wait() for event in begun))
    os.kill(cluster.replicas("engine")[0], signal.SIGKILL)
    late = await asyncio.gather(*(_ask(client, _body(4000 + i)) for i in range(12)))
    assert all(outcome.whole for outcome in late), [outcome for outcome in late if not outcome.whole]
    outcomes = await asyncio.gather(*streams)
    cut = [outcome for outcome in outcomes if not outcome.whole]
    assert cut, "nobody was on the engine that was killed"
    assert {outcome.error for outcome in cut} == {"engine_failed"}
    assert all(outcome.body.endswith("data: [DONE]\n\n") for outcome in cut)

    def replaced(engines: list[dict[str, Any]]) -> bool:
        return len(engines) == 3 and len({engine["name"] for engine in engines} & before) == 2

    await _until(client, replaced, 120)
    await _all_idle(client)


async def test_a_rolling_update_loses_nobody(cluster: Server, client: httpx.AsyncClient) -> None:
    before = {engine["name"] for engine in await _engines(client)}
    http_before = cluster.replicas("http")
    ready = asyncio.Event()
    outcomes: list[Outcome] = []

    async def keep_asking(first: int) -> None:
        number = first
        while not ready.is_set():
            outcomes.append(await _ask(client, _body(number, tokens=40)))
            number += 1

    asking = [asyncio.create_task(keep_asking(10000 * (worker + 1))) for worker in range(3)]
    cluster.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(cluster.wait_for, "Ready again", 200)
    ready.set()
    await asyncio.gather(*asking)
    failures = [outcome for outcome in outcomes if not outcome.whole]
    assert not failures, f"{len(failures)} of {len(outcomes)}: {failures[:2]}"
    assert len(outcomes) >= 3
    await _until(client, lambda engines: len(engines) == 3, 60)
    assert not {engine["name"] for engine in await _engines(client)} & before
    assert cluster.replicas("http") != http_before
    await _all_idle(client)


async def test_every_metric_is_there_for_prometheus(cluster: Server, client: httpx.AsyncClient) -> None:
    assert (await _ask(client, _body(1))).whole
    assert (await client.get("/nothing")).status_code == 404
    assert (await client.post(CHAT, json=_body(1) | {"messages": []})).status_code == 400
    # Counters of what did not happen are not there yet.
    expected = {metric.exported(name) for name, metric in METRICS.items()} - {"ray_minigpt4_preemptions_total"}
    deadline = time.monotonic() + 60
    while True:
        text = (await client.get(f"http://127.0.0.1:{cluster.metrics_port}/metrics")).text
        missing = expected - set(re.findall(r"^(ray_minigpt4_\w+)", text, re.MULTILINE))
        if not missing:
            break
        assert time.monotonic() < deadline, missing
        await asyncio.sleep(1)
    assert 'reason="invalid_request_error"' in text
    assert "What is in this picture" not in text
