"""What the benchmark of the server reads, asks and sums up; the run itself needs Ray and minutes."""

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from vision_server import Refusal, vision_server

TOOL = Path(__file__).parents[2] / "tools" / "bench_serve.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_serve", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["bench_serve"] = module
    spec.loader.exec_module(module)
    return module


def test_a_side_is_a_name_settings_and_environment(bench: Any) -> None:
    common = {"scale": {"http": 1}}
    side = bench.read_side("three:scale.engines=3:RAY_X=1:model_name=a", common)
    assert (side.name, side.environment) == ("three", {"RAY_X": "1"})
    assert side.settings == {"scale": {"http": 1, "engines": 3}, "model_name": "a"}
    assert common == {"scale": {"http": 1}}


def test_chats_grow_and_all_their_pictures_differ(bench: Any) -> None:
    chats = bench.chats(5, 3, 16, seed=1)
    bodies = [[json.loads(body) for body in chat] for chat in chats]
    assert [len(body["messages"]) for body in bodies[0]] == [1, 3, 5]
    urls = {body["messages"][0]["content"][0]["image_url"]["url"] for chat in bodies for body in chat}
    assert len(urls) == 5
    assert {body["min_tokens"] for chat in bodies for body in chat} == {16}


def test_answers_are_counted_as_they_are_streamed(bench: Any) -> None:
    with vision_server(answers=["a red star"], models=["bench"]) as server:
        side = bench.Side("it", port=int(server.url.split(":")[2].split("/")[0]))
        body = json.loads(bench.chats(1, 1, 4, seed=1)[0][0])
        del body["min_tokens"]  # the stand-in knows OpenAI's own words only
        asyncio.run(bench.ask(side, json.dumps(body).encode()))
    assert (side.tokens, side.prompt, side.cached) == (4, 40, 8)
    assert side.ttft[0] > 0
    side.seconds = 2.0
    summary = side.summary(base=4.0)
    assert (summary["tokens_per_s"], summary["of_uvicorn"]) == (2.0, 0.5)


def test_a_crowd_is_answered_or_refused(bench: Any) -> None:
    with vision_server(answers=["a red star"], models=["bench"]) as server:
        side = bench.Side("it", port=int(server.url.split(":")[2].split("/")[0]))
        body = json.loads(bench.chats(1, 1, 4, seed=1)[0][0])
        del body["min_tokens"]
        crowd = bench.Crowd()
        asyncio.run(bench.press(side, json.dumps(body).encode(), crowd))
        assert (crowd.refused, len(crowd.begun)) == ([], 1)
        server.answers.append(Refusal(429, "overloaded"))
        asyncio.run(bench.press(side, json.dumps(body).encode(), crowd))
        assert (len(crowd.refused), len(crowd.begun)) == (1, 1)
        assert len(asyncio.run(bench.trivial(side, 3))) == 3
    summary = crowd.summary("burst")
    assert (summary["burst_answered"], summary["burst_refused"], summary["burst_refused_late"]) == (1, 1, 0)
    assert min(summary["burst_refused_p50_ms"], summary["burst_ttft_p50_ms"]) > 0


def test_a_full_house_asks_as_many_at_a_time_as_there_are_slots(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with vision_server(answers=["a red star"], models=["bench"]) as server:
        side = bench.Side("it", {"engine": {"max_running": 2}, "scale": {"engines": 2}}, tokens=32_000, seconds=1.0)
        side.port = int(server.url.split(":")[2].split("/")[0])
        body = json.loads(bench.chats(1, 1, 4, seed=1)[0][0])
        del body["min_tokens"]
        monkeypatch.setattr(bench, "chats", lambda count, *_, seed: [[json.dumps(body).encode()]] * count)
        crowd = asyncio.run(bench.full(side, 0.2))
    assert len(crowd.begun) >= 4
    assert not crowd.refused
