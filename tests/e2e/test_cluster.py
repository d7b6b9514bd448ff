"""Three engines on a real Ray cluster: images reach the replica that cached them, and no request is left unanswered."""

import asyncio
import base64
import itertools
import json
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from drawing import encode
from PIL import Image
from processes import Server
from waiting import wait_until

from minigpt4_serve.server.ray.metrics import METRICS

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

CHAT = "/v1/chat/completions"
ENGINES = 3
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "minLength": 4000}}, "required": ["a"]}
# No stop string ends an answer of a given shape, so this one always has its maximum length.
LONG = {"max_tokens": 200, "response_format": {"type": "json_schema", "json_schema": {"schema": _SCHEMA}}}
# Long enough to be in progress, even on a busy machine, as long as a test needs it; clients leave before its end.
ENDLESS = LONG | {"max_tokens": 900}


@dataclass
class Outcome:
    """What a client received for its request."""

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
    def started(self) -> bool:
        return '"content":"' in self.body

    @property
    def error(self) -> str | None:
        found = [event["error"]["code"] for event in self.events if "error" in event]
        return found[0] if found else None


def _body(image_number: int, turns: int = 1, tokens: int = 8) -> dict[str, Any]:
    """A chat about an image of its own for each number; no answer is longer than ``tokens``."""
    rng = random.Random(image_number)
    image = Image.new("RGB", (64, 64), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    image.putpixel((1, 1), (image_number % 256, image_number // 256, 7))
    url = "data:image/png;base64," + base64.b64encode(encode(image)).decode()
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        text = {"type": "text", "text": f"What is in this picture, and why? ({turn})"}
        content = [text] if turn else [{"type": "image_url", "image_url": {"url": url}}, text]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "A circle."}]
    fixed = {"max_tokens": tokens, "temperature": 0, "stream": True}
    return {"messages": messages[:-1], "stream_options": {"include_usage": True}, **fixed}


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], outcome: Outcome | None = None) -> Outcome:
    outcome = outcome or Outcome()
    async with client.stream("POST", CHAT, json=body) as answer:
        outcome.status = answer.status_code
        outcome.headers = answer.headers
        async for chunk in answer.aiter_text():
            outcome.body += chunk
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
        await asyncio.sleep(0.1)


async def _all_idle(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Wait until all engines report that they hold no running slot, queue position or block; returns the reports.

    Engines report every two seconds. Only reports made after this call count: an older one may be from before the
    last request.
    """
    called_at = time.time()
    reports: list[dict[str, Any]] = []

    def idle(engines: list[dict[str, Any]]) -> bool:
        reports[:] = engines
        return len(engines) == ENGINES and all(
            engine["reported_at"] > called_at
            and not any(engine[held] for held in ("running", "waiting", "blocks_held"))
            for engine in engines
        )

    await _until(client, idle, 120)
    return reports


def _grown(counter: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    return sum(engine[counter] for engine in after) - sum(engine[counter] for engine in before)


@dataclass
class Load:
    """Requests without a pause.

    Attributes:
        outcomes: of finished requests.
        running: the current one of each worker.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    running: dict[int, Outcome] = field(default_factory=dict)


@asynccontextmanager
async def _asking(client: httpx.AsyncClient, *, workers: int, first: int, tokens: int = 200) -> AsyncIterator[Load]:
    """Clients, as many as ``workers``, that each send the next request as soon as the last one is answered."""
    over = asyncio.Event()
    load = Load()
    numbers = itertools.count(first)

    async def keep_asking(worker: int) -> None:
        while not over.is_set():
            outcome = load.running[worker] = Outcome()
            body = _body(next(numbers)) | LONG | {"max_tokens": tokens}
            load.outcomes.append(await _ask(client, body, outcome))

    async with asyncio.TaskGroup() as group:
        for worker in range(workers):
            group.create_task(keep_asking(worker))
        yield load
        over.set()


async def test_follow_ups_reach_the_replica_with_their_image(client: httpx.AsyncClient) -> None:
    before = await _all_idle(client)
    rng = random.Random(1)
    gate = asyncio.Semaphore(6)

    async def turn(image: int, number: int) -> bool:
        async with gate:
            outcome = await _ask(client, _body(image, turns=number))
        assert outcome.whole, outcome
        return bool(outcome.events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"])

    images = list(range(24))
    hits: list[bool] = []
    for number in (1, 2, 3):
        rng.shuffle(images)  # in order, round-robin would pass, too
        found = await asyncio.gather(*(turn(image, number) for image in images))
        # The image is in the first block: where it isn't cached, neither is anything else.
        assert number > 1 or not any(found)
        hits += found if number > 1 else []
    assert sum(hits) >= 0.9 * len(hits), f"{sum(hits)} of {len(hits)}"
    after = await _all_idle(client)
    asked = {engine["name"]: engine["requests"] for engine in before}
    assert all(engine["requests"] > asked.get(engine["name"], 0) + 2 for engine in after), "not all engines take part"
    assert _grown("image_decodes", before, after) <= 1.1 * len(images)


CAPACITY = ENGINES * (8 + 4)


async def test_overload_is_refused_and_the_rest_is_answered(client: httpx.AsyncClient) -> None:
    before = await _all_idle(client)
    outcomes = await asyncio.gather(*(_ask(client, _body(1000 + i, tokens=24)) for i in range(5 * CAPACITY)))
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
    after = await _all_idle(client)
    # No engine did any work for refused requests.
    answered = sum(outcome.status == 200 for outcome in outcomes)
    assert answered > 0.9 * CAPACITY
    for counter in ("requests", "image_decodes"):
        assert _grown(counter, before, after) == answered


async def test_a_full_server_refuses_before_it_reads_the_body(client: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as open_streams:

        async def take_a_slot(number: int) -> None:
            answer = await open_streams.enter_async_context(
                client.stream("POST", CHAT, json=_body(1500 + number) | ENDLESS)
            )
            if answer.status_code == 429:  # two reached one engine at the same time; others have room
                await take_a_slot(number)
            else:
                assert answer.status_code == 200

        # All at once: one after the other, the first would end before the last starts.
        await asyncio.gather(*map(take_a_slot, range(CAPACITY)))
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{{".encode())
        assert b" 429 " in await reader.readline()
        assert b"overloaded" in await reader.readuntil(b"}}")
        writer.close()
    await _all_idle(client)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="niceness of threads is Linux's")
def test_engines_on_cpus_let_http_go_first(cluster: Server) -> None:
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        pytest.skip("the tests run with a lower priority themselves, which every process inherits")

    def niceness(deployment: str) -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, pid) for pid in cluster.replicas(deployment)}

    assert max(niceness("http")) < min(niceness("engine"))


async def test_an_engine_aborts_requests_of_clients_that_left(client: httpx.AsyncClient) -> None:
    aborted = sum(engine["aborted"] for engine in await _all_idle(client))
    for number in range(3):
        async with client.stream("POST", CHAT, json=_body(2000 + number) | ENDLESS) as answer:
            await anext(answer.aiter_text())
    await _until(client, lambda engines: sum(engine["aborted"] for engine in engines) == aborted + 3, 120)
    await _all_idle(client)


@pytest.mark.timeout(900)
async def test_a_killed_engine_loses_only_started_answers(cluster: Server, client: httpx.AsyncClient) -> None:
    before = {engine["name"] for engine in await _all_idle(client)}
    killed = cluster.replicas("engine")[0]
    async with _asking(client, workers=20, first=3000, tokens=100) as load:
        # Two engines have sixteen slots: with more answers in progress, the third is answering, too.
        await wait_until(lambda: sum(outcome.started for outcome in load.running.values()) > 16, within_s=240)
        os.kill(killed, signal.SIGKILL)
        await wait_until(lambda: any(outcome.error for outcome in load.outcomes), within_s=240)
        answered = len(load.outcomes)
        await wait_until(lambda: len(load.outcomes) > answered + 6, within_s=240)
    cut = [outcome for outcome in load.outcomes if not outcome.whole]
    assert cut, "no answer was in progress on the killed engine"
    assert {(outcome.status, outcome.error) for outcome in cut} == {(200, "engine_failed")}
    for outcome in cut:
        assert outcome.started, "it had not started, so it could have been sent to another engine"
        assert outcome.body.endswith("data: [DONE]\n\n")

    def replaced(engines: list[dict[str, Any]]) -> bool:
        return len(engines) == ENGINES and len({engine["name"] for engine in engines} & before) == ENGINES - 1

    await _until(client, replaced, 240)
    await _all_idle(client)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_rolling_update_loses_no_request(cluster: Server, client: httpx.AsyncClient) -> None:
    before = {engine["name"] for engine in await _all_idle(client)}
    http_before = cluster.replicas("http")
    async with _asking(client, workers=3, first=10000) as load:
        await wait_until(lambda: len(load.outcomes) > 2, within_s=240)
        cluster.process.send_signal(signal.SIGHUP)
        # Five processes load the model one after the other, on two cores that are busy answering.
        await asyncio.to_thread(cluster.wait_for, "Ready again", 600)
    failures = [outcome for outcome in load.outcomes if not outcome.whole]
    assert not failures, f"{len(failures)} of {len(load.outcomes)}: {failures[:2]}"

    def all_new(engines: list[dict[str, Any]]) -> bool:
        return len(engines) == ENGINES and not {engine["name"] for engine in engines} & before

    await _until(client, all_new, 120)
    await cluster.until_replaced("http", http_before)
    await _all_idle(client)


_GAUGES = {
    "running": "running",
    "waiting": "waiting",
    "kv_blocks": "blocks_held",
    "kv_blocks_capacity": "blocks_total",
}
"""Each gauge's field in an engine's report."""


async def _metrics(cluster: Server, client: httpx.AsyncClient) -> str:
    rays = (await client.get(f"http://127.0.0.1:{cluster.metrics_port}/metrics")).text
    response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert set(re.findall(r"^(\w+)", response.text, re.MULTILINE)) <= set(re.findall(r"^(\w+)", rays, re.MULTILINE))
    return response.text


async def _gauges(client: httpx.AsyncClient, text: str) -> dict[str, float]:
    """Each gauge's sum over the live engines: Ray keeps exporting the last values of lost ones."""
    names = {engine["name"] for engine in await _engines(client)}
    sums: dict[str, float] = {}
    for gauge in _GAUGES:
        series = re.findall(rf"^ray_minigpt4_{gauge}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
        sums[gauge] = sum(float(value) for labels, value in series if any(name in labels for name in names))
    return sums


async def test_prometheus_gets_every_metric(cluster: Server, client: httpx.AsyncClient) -> None:
    await _all_idle(client)
    for _ in range(2):  # the second finds the first one's prompt in the cache
        assert (await _ask(client, _body(1))).whole
    assert (await client.get("/nothing")).status_code == 404
    assert (await client.post(CHAT, json=_body(1) | {"messages": []})).status_code == 400
    async with client.stream("POST", CHAT, json=_body(1) | ENDLESS) as leaving:
        await anext(leaving.aiter_text())
    # Counters of events that did not happen do not exist yet.
    expected = {metric.exported(name) for name, metric in METRICS.items()} - {"ray_minigpt4_preemptions_total"}
    deadline = time.monotonic() + 150
    # Ray exports every few seconds: gauges may still show earlier values.
    async with _asking(client, workers=3, first=4000):
        while True:
            text = await _metrics(cluster, client)
            missing = expected - set(re.findall(r"^(ray_minigpt4_\w+)", text, re.MULTILINE))
            busy = await _gauges(client, text)
            at_work = 0 < busy["running"] <= 3 and 0 < busy["kv_blocks"] < busy["kv_blocks_capacity"]
            if not missing and at_work and 'reason="invalid_request_error"' in text:
                break
            assert time.monotonic() < deadline, (missing, busy)
            await asyncio.sleep(0.5)
    assert "What is in this picture" not in text
    engines = await _all_idle(client)
    idle = {gauge: sum(engine[field] for engine in engines) for gauge, field in _GAUGES.items()}
    assert idle["kv_blocks_capacity"] > 0
    deadline = time.monotonic() + 150
    while (now := await _gauges(client, await _metrics(cluster, client))) != idle:
        assert time.monotonic() < deadline, (now, idle)
        await asyncio.sleep(0.5)
