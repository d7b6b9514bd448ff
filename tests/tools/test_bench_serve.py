"""Requests, counts and summaries of the server's benchmark; the benchmark itself needs Ray and minutes."""

import asyncio
import json

import pytest
from fakes.openai_replies import refusal
from fakes.openai_server import vision_server

from tools.bench import overload
from tools.bench.http_requests import StreamedAnswer, chat_bodies, stream_chat
from tools.bench.overload import OverloadResult, saturate, send_one, time_trivial_requests
from tools.bench.serve import ServerResult, main
from tools.bench.servers import ServerUnderTest, parse_server


def openai_body() -> bytes:
    """A request without the server's own fields, which the fake refuses."""
    body = json.loads(chat_bodies(1, 1, 4, seed=1)[0][0])
    del body["min_tokens"]
    return json.dumps(body).encode()


def test_a_server_is_a_name_settings_and_environment() -> None:
    settings = {"scale": {"http": 1}}
    server = parse_server("three:scale.engines=3:RAY_X=1:model_name=a", settings)
    assert (server.name, server.environment) == ("three", {"RAY_X": "1"})
    assert server.settings == {"scale": {"http": 1, "engines": 3}, "model_name": "a"}
    assert settings == {"scale": {"http": 1}}


def test_capacity_counts_running_and_waiting_of_all_engines() -> None:
    server = ServerUnderTest("it", {"engine": {"max_running": 8, "max_waiting": 2}, "scale": {"engines": 3}})
    assert (server.running_slots, server.capacity) == (24, 30)


def test_servers_need_different_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--server", "one engine:scale.http=2"])
    assert ended.value.code == 2
    assert "a name of its own" in capsys.readouterr().err


def test_chats_grow_and_all_their_images_differ() -> None:
    chats = chat_bodies(5, 3, 16, seed=1)
    bodies = [[json.loads(body) for body in chat] for chat in chats]
    assert [len(body["messages"]) for body in bodies[0]] == [1, 3, 5]
    urls = {body["messages"][0]["content"][0]["image_url"]["url"] for chat in bodies for body in chat}
    assert len(urls) == 5
    assert {body["min_tokens"] for chat in bodies for body in chat} == {16}


def test_streamed_answers_are_counted() -> None:
    with vision_server(answers=["a red star"], models=["bench"]) as server:
        answer = asyncio.run(stream_chat(server.port, openai_body()))
    assert (answer.completion_tokens, answer.prompt_tokens, answer.cached_tokens) == (14, 52, 40)
    assert answer.events > 0
    assert answer.ttft > 0


def test_the_summary_is_relative_to_the_bare_server() -> None:
    answer = StreamedAnswer(ttft=0.25, events=2, completion_tokens=4, prompt_tokens=40, cached_tokens=8)
    result = ServerResult(seconds=2.0, cpu_seconds=1.0)
    result.add([answer])
    summary = result.summary(base_rate=4.0)
    assert (summary["tokens_per_s"], summary["of_uvicorn"], summary["tokens_per_cpu_s"]) == (2.0, 0.5, 4.0)
    assert (summary["ttft_p50_ms"], summary["tokens_per_event"], summary["cached_share_of_prompts"]) == (250.0, 2, 0.2)


def test_under_overload_a_request_is_answered_or_refused() -> None:
    with vision_server(answers=["a red star"], models=["bench"]) as fake:
        server = ServerUnderTest("it", port=fake.port)
        result = OverloadResult()
        asyncio.run(send_one(server, openai_body(), result))
        assert (result.refusals, len(result.ttft)) == ([], 1)
        fake.answers.append(refusal(429, "overloaded"))
        asyncio.run(send_one(server, openai_body(), result))
        assert (len(result.refusals), len(result.ttft)) == (1, 1)
        assert len(asyncio.run(time_trivial_requests(server, 3))) == 3
    summary = result.summary("burst")
    assert (summary["burst_answered"], summary["burst_refused"]) == (1, 1)
    assert min(summary["burst_refused_p50_ms"], summary["burst_ttft_p50_ms"]) > 0


def test_an_answer_that_is_neither_ends_the_benchmark() -> None:
    with vision_server(answers=[refusal(500, "broken")], models=["bench"]) as fake:
        server = ServerUnderTest("it", port=fake.port)
        with pytest.raises(SystemExit, match=r"it answered: .* 500 "):
            asyncio.run(send_one(server, openai_body(), OverloadResult()))


def test_late_refusals_are_counted() -> None:
    summary = OverloadResult(refusals=[0.01, 0.3], ttft=[]).summary("overload")
    assert (summary["overload_answered"], summary["overload_refused"], summary["overload_refused_late"]) == (0, 2, 1)


def test_saturation_keeps_one_request_per_running_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    body = openai_body()
    active = 0
    most = 0

    async def counted(*arguments: object) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await send_one(*arguments)  # type: ignore[arg-type]
        active -= 1

    monkeypatch.setattr(overload, "first_turns", lambda count, *_, seed: [body] * count)
    monkeypatch.setattr(overload, "send_one", counted)
    with vision_server(answers=["a red star"], models=["bench"]) as fake:
        settings = {"engine": {"max_running": 2}, "scale": {"engines": 2}}
        result = asyncio.run(saturate(ServerUnderTest("it", settings, port=fake.port), rate=10_000, seconds=0.2))
    assert most == 4
    assert len(result.ttft) >= 4
    assert not result.refusals
