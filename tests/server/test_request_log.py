"""A request's log line, counts and headers, without its content."""

import json
import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from minigpt4_serve.errors import Overloaded
from minigpt4_serve.protocol import Timings, Usage
from minigpt4_serve.server.http.error_handlers import error_response
from minigpt4_serve.server.http.request_context import note_answer
from minigpt4_serve.server.http.request_log import RequestLogMiddleware
from minigpt4_serve.server.logs import JsonFormatter

USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3)
TIMINGS = Timings(images_s=0.01, queue_s=0.02, encode_s=0.03, prefill_s=0.04, decode_s=0.05, ttft_s=0.1, total_s=0.15)


class Counts:
    def __init__(self) -> None:
        self.answers: list[tuple[Usage, Timings]] = []
        self.requests: list[tuple[str, int, str | None]] = []

    def answer(self, usage: Usage, timings: Timings) -> None:
        self.answers.append((usage, timings))

    def request(self, path: str, status: int, seconds: float, refusal: str | None) -> None:
        assert seconds >= 0
        self.requests.append((path, status, refusal))


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] in ("/whole", "/stream", "/busy", "/breaks"):
        scope["route"] = SimpleNamespace(path=scope["path"])  # as the router notes what it found
    if scope["path"] == "/breaks":
        raise RuntimeError("secret text of a driver")
    if scope["path"] == "/busy":
        await error_response(Overloaded("Busy.", retry_after=3))(scope, receive, send)
        return
    if scope["path"] == "/whole":
        note_answer(USAGE, TIMINGS)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        note_answer(USAGE, TIMINGS)
    await send({"type": "http.response.body", "body": b"the answer"})


async def _get(path: str, *, behind_proxy: bool = False, **headers: str) -> tuple[httpx.Response, Counts]:
    counts = Counts()
    app = RequestLogMiddleware(_app, meter=counts, behind_proxy=behind_proxy)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.get(path, headers=headers), counts


async def test_a_whole_answer_has_its_timings_in_a_header() -> None:
    answer, counts = await _get("/whole")
    assert answer.headers["server-timing"].startswith("images;dur=10.0, queue;dur=20.0, encode;dur=30.0")
    assert answer.headers["x-request-id"].startswith("req-")
    assert counts.answers == [(USAGE, TIMINGS)]
    assert counts.requests == [("/whole", 200, None)]


async def test_the_proxys_request_id_is_left_to_the_proxy() -> None:
    answer, _ = await _get("/whole", behind_proxy=True, **{"x-request-id": "abc-0"})
    assert "x-request-id" not in answer.headers


async def test_a_streams_header_has_the_time_to_first_delta() -> None:
    answer, counts = await _get("/stream")
    assert answer.headers["server-timing"].startswith("first;dur=")
    assert counts.answers == [(USAGE, TIMINGS)]


async def test_refusals_are_counted_by_reason_unknown_paths_together() -> None:
    _, counts = await _get("/busy")
    assert counts.requests == [("/busy", 429, "overloaded")]
    _, counts = await _get("/made/up/by/a/stranger")
    assert counts.requests == [("other", 200, None)]


async def test_crashes_are_logged_in_full_and_answered_generically(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer, counts = await _get("/breaks", **{"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert counts.requests == [("/breaks", 500, "internal_error")]
    assert "request abc-1 failed" in caplog.text


async def test_the_line_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "minigpt4_serve.requests"):
        await _get("/whole", **{"x-request-id": "abc-2"})
    (record,) = [record for record in caplog.records if record.name == "minigpt4_serve.requests"]
    line: dict[str, Any] = json.loads(JsonFormatter().format(record))
    assert line["event"] == "request"
    assert line["request_id"] == "abc-2"
    assert (line["status"], line["completion_tokens"], line["timings"]["queue_s"]) == (200, 3, 0.02)
    assert "the answer" not in json.dumps(line)
