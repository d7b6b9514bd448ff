"""Metrics follow what happens: gauges rise and return to zero, counters count everything once."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from engine_driving import collect, make_prompt, running_engine, step_gate, wait_until_idle
from serving_app import serving

from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.ray.metrics import METRICS, EngineMeter, HttpMeter

CHAT = "/v1/chat/completions"
LONG = SamplingParams(max_tokens=60, ignore_eos=True)


class Recorder:
    """Replaces Ray's metrics, which need a cluster: every value by name and labels."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self.values: dict[tuple[str, str], float] = defaultdict(float)
        self.observed: dict[tuple[str, str], list[float]] = defaultdict(list)

    def make(self, kind: str) -> Any:
        recorder = self

        class Made:
            def __init__(self, name: str, text: str, *, tag_keys: tuple[str, ...] = (), **_: Any) -> None:
                assert text
                recorder.kinds[name] = kind
                self.name = name
                self.tag_keys = tag_keys

            def _key(self, tags: dict[str, str] | None) -> tuple[str, str]:
                assert tuple(tags or ()) == self.tag_keys
                return self.name, " ".join((tags or {}).values())

            def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
                assert (kind, value > 0) == ("counter", True)
                recorder.values[self._key(tags)] += value

            def set(self, value: float, tags: dict[str, str] | None = None) -> None:
                assert kind == "gauge"
                recorder.values[self._key(tags)] = value

            def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
                assert kind == "histogram"
                recorder.observed[self._key(tags)].append(value)

        return Made

    def __getitem__(self, name: str) -> float:
        return self.values[f"minigpt4_{name}", ""]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"ray.serve.metrics.{kind}", recorder.make(kind.lower()))
    return recorder


async def test_gauges_follow_the_engine_and_return_to_zero(small_model: Any, recorder: Recorder) -> None:
    asked = make_prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    meter = EngineMeter()
    with running_engine(small_model, max_running=2, max_waiting=3, block_size=4) as engine:
        meter.update(asdict(engine.stats()))
        assert (recorder["running"], recorder["waiting"], recorder["kv_blocks"]) == (0, 0, 0)
        total = recorder["kv_blocks_capacity"]
        assert total == engine.stats().blocks_total > 0
        with step_gate(engine, 10) as gate:
            tasks = [asyncio.create_task(collect(engine, asked, LONG, str(number))) for number in range(5)]
            await gate.wait_until_exhausted()
            meter.update(asdict(engine.stats()))
            assert (recorder["running"], recorder["waiting"]) == (2, 3)
            # Both read the same prompt, so they share its full blocks; each has at least one of its own.
            assert len(asked.token_ids) // 4 + 2 <= recorder["kv_blocks"] <= total
        await asyncio.gather(*tasks)
        await wait_until_idle(engine)
        meter.update(asdict(engine.stats()))
    assert (recorder["running"], recorder["waiting"], recorder["kv_blocks"]) == (0, 0, 0)
    assert recorder["kv_blocks_capacity"] == total


async def test_what_an_engine_counts_is_passed_on_once(small_model: Any, recorder: Recorder) -> None:
    asked = make_prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    meter = EngineMeter()
    with running_engine(small_model, max_running=1) as engine:
        for number in range(2):
            await collect(engine, asked, LONG, str(number))
            for _ in range(3):  # Ray asks whether anything happened or not
                meter.update(asdict(engine.stats()))
        assert recorder["generated_tokens"] == 2 * LONG.max_tokens
        assert (recorder["image_decodes"], recorder["image_encodes"], recorder["image_hits"]) == (1, 1, 1)
        assert recorder["aborted"] == 0
        with step_gate(engine, 10) as gate:
            leaving = engine.generate(asked, LONG, request_id="leaves")
            await anext(leaving)
            await gate.wait_until_exhausted()
            await leaving.aclose()  # type: ignore[attr-defined]
        await wait_until_idle(engine)
        meter.update(asdict(engine.stats()))
    assert recorder["aborted"] == 1
    assert recorder["running"] == 0


async def test_answers_and_refusals_are_counted(small_model: Any, recorder: Recorder) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0}
    with serving(small_model) as (_, service):
        app = create_app(service, meter=HttpMeter())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            usages = [(await client.post(CHAT, json=body)).json()["usage"] for _ in range(2)]
            assert (await client.post(CHAT, json={"messages": []})).status_code == 400
            assert (await client.get("/secret-words")).status_code == 404
    for name in ("prompt", "completion"):
        assert recorder[f"{name}_tokens"] == sum(usage[f"{name}_tokens"] for usage in usages) > 0
    assert recorder["cached_tokens"] == sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages) > 0
    times = {
        labels: len(seen) for (name, labels), seen in recorder.observed.items() if name.endswith("request_seconds")
    }
    assert times == {f"{CHAT} 200": 2, f"{CHAT} 400": 1, "other 404": 1}
    assert recorder.values["minigpt4_refusals", "invalid_request_error"] == 2
    for name in ("ttft", "inter_token", "queue", "image_decode", "image_encode", "prefill", "decode"):
        seen = recorder.observed[f"minigpt4_{name}_seconds", ""]
        assert len(seen) == 2, name
        assert min(seen) >= 0


def test_every_metric_is_made_as_the_kind_it_says(recorder: Recorder) -> None:
    HttpMeter()
    EngineMeter()
    assert recorder.kinds == {name: metric.kind for name, metric in METRICS.items()}
