"""The HTTP surface over a real engine with a small random model, on loopback, without Ray."""

import asyncio
import base64
import itertools
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from drawing import draw, encode
from serving_app import few_steps, local_engine, serving, settled, wait_until_abort_is_sent

from minigpt4_serve.engine.admission import Admission
from minigpt4_serve.errors import EngineFailed, Overloaded
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.server.http import chat_service
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.openai.chat_request import parse_chat_request
from minigpt4_serve.settings import EngineSettings

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(small_model: Any) -> Iterator[tuple[httpx.Client, ChatService]]:
    with serving(small_model, engine=EngineSettings(max_running=4)) as pair:
        yield pair


@pytest.fixture
def client(served: tuple[httpx.Client, ChatService]) -> httpx.Client:
    return served[0]


def _picture(color: str = "red") -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(encode(draw(color))).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _question(text: str = "What is it?", *colors: str, **fields: Any) -> dict[str, Any]:
    content = [*(_picture(color) for color in colors), {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0, **fields}


def _events(text: str) -> list[dict[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def test_whole_and_streamed_answers_are_the_same(client: httpx.Client) -> None:
    whole = client.post(CHAT, json=_question("What is it?", "red")).json()
    streamed = client.post(
        CHAT, json=_question("What is it?", "red", stream=True, stream_options={"include_usage": True})
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = _events(streamed.text)
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert text.strip() == whole["choices"][0]["message"]["content"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert events[-1]["choices"] == []
    assert set(events[-1]["timings"]) == {
        *("images_s", "queue_s", "encode_s", "prefill_s", "decode_s", "ttft_s", "total_s"),
    }
    assert {event["id"] for event in events} == {events[0]["id"]}


def test_usage_is_left_out_unless_asked_for(client: httpx.Client) -> None:
    events = _events(client.post(CHAT, json=_question(stream=True)).text)
    assert events
    assert all("usage" not in event for event in events)


def test_a_follow_up_finds_its_beginning_in_the_cache(client: httpx.Client) -> None:
    chat = _question("A question about this very picture, please?", "green")
    first = client.post(CHAT, json=chat).json()
    answer = first["choices"][0]["message"]
    chat["messages"] += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "And?"}]
    second = client.post(CHAT, json=chat).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 16


def test_several_answers_and_seeds(client: httpx.Client) -> None:
    wanted = _question(n=3, temperature=1.5, seed=7)
    first, second = (client.post(CHAT, json=wanted).json()["choices"] for _ in range(2))
    assert [choice["index"] for choice in first] == [0, 1, 2]
    assert first == second
    assert len({choice["message"]["content"] for choice in first}) > 1
    other = client.post(CHAT, json={**wanted, "seed": 8}).json()["choices"]
    assert other != first


def test_beam_search_gives_the_best_answers_at_once(client: httpx.Client) -> None:
    wanted = _question(beams=3, n=2)
    del wanted["temperature"]
    whole = client.post(CHAT, json=wanted).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) == 2
    events = _events(client.post(CHAT, json={**wanted, "stream": True}).text)
    pieces = [choice for event in events for choice in event["choices"] if choice["delta"].get("content")]
    assert {piece["index"]: piece["delta"]["content"].strip() for piece in pieces} == dict(enumerate(texts))
    for wrong in ({"n": 4}, {"temperature": 1.0}, {"logprobs": True}, {"beams": 11}):
        assert client.post(CHAT, json={**wanted, **wrong}).json()["error"]["type"] == "invalid_request_error"


def test_logprobs(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=_question(logprobs=True, top_logprobs=3, max_tokens=5)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for entry in content:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        # Greedy: the chosen token is the likeliest.
        assert entry["top_logprobs"][0]["token"] == entry["token"]
    streamed = _events(client.post(CHAT, json=_question(logprobs=True, max_tokens=5, stream=True)).text)
    logprobs = [e for event in streamed for c in event["choices"] if c["logprobs"] for e in c["logprobs"]["content"]]
    assert [entry["token"] for entry in logprobs] == [entry["token"] for entry in content]


def _text(entries: list[dict[str, Any]]) -> str:
    """The text of reported tokens, without what is no character."""
    return bytes(itertools.chain(*(entry["bytes"] for entry in entries))).decode(errors="ignore").strip()


def test_reported_tokens_make_up_the_answer(client: httpx.Client) -> None:
    text = client.post(CHAT, json=_question(max_tokens=40)).json()["choices"][0]["message"]["content"]
    for fields in ({}, {"stop": [text[10:13]]}, {"stop": [text[20:26]]}, {"stop": [text[:2]]}):
        wanted = _question(max_tokens=40, logprobs=True, **fields)
        choice = client.post(CHAT, json=wanted).json()["choices"][0]
        content = choice["message"]["content"].replace("\ufffd", "").strip()
        entries = choice["logprobs"]["content"]
        # A stop string may begin inside of the last token.
        assert _text(entries).startswith(content)
        assert content.startswith(_text(entries[:-1]))
        streamed = _events(client.post(CHAT, json={**wanted, "stream": True}).text)
        chunks = [choice for event in streamed for choice in event["choices"] if choice["logprobs"]]
        assert [entry for chunk in chunks for entry in chunk["logprobs"]["content"]] == entries


def test_a_character_outside_the_vocabulary_is_reported_in_bytes(client: httpx.Client) -> None:
    shape = {"type": "json_schema", "json_schema": {"schema": {"enum": ["😀"]}}}
    wanted = _question(max_tokens=20, logprobs=True, top_logprobs=1, response_format=shape)
    choice = client.post(CHAT, json=wanted).json()["choices"][0]
    assert choice["message"]["content"] == '"😀"'
    assert _text(choice["logprobs"]["content"]) == '"😀"'
    assert {"token": "\\xf0", "bytes": [240]}.items() <= choice["logprobs"]["content"][1].items()


@pytest.mark.parametrize("fields", [{"min_tokens": 20}, {"ignore_eos": True}, {"min_tokens": 20, "stop": ["e", "a"]}])
@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_do_not_end_an_answer_too_early(
    served: tuple[httpx.Client, ChatService], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], beams: int
) -> None:
    client, service = served
    text = client.post(CHAT, json=_question(max_tokens=20)).json()["choices"][0]["message"]["content"]
    # The template's separator is a string that the model writes at once.
    variant = service._encoder.variant
    template = replace(variant.template, stop=(text[1:3],))
    monkeypatch.setattr(service, "_encoder", replace(service._encoder, variant=replace(variant, template=template)))
    early = client.post(CHAT, json=_question(max_tokens=20)).json()
    assert early["usage"]["completion_tokens"] < 20
    answer = client.post(CHAT, json=_question(max_tokens=20, beams=beams, **fields)).json()
    assert answer["usage"]["completion_tokens"] == 20


def test_hints_are_accepted_and_answered(client: httpx.Client) -> None:
    hints = {"store": True, "service_tier": "flex", "user": "me", "prompt_cache_key": "chat", "metadata": {"a": "b"}}
    whole = client.post(CHAT, json=_question(**hints)).json()
    assert (whole["store"], whole["service_tier"]) == (False, "default")
    last = _events(client.post(CHAT, json=_question(**hints, stream=True)).text)[-1]
    assert (last["store"], last["service_tier"]) == (False, "default")
    plain = client.post(CHAT, json=_question()).json()
    assert not {"store", "service_tier"} & set(plain)
    response = client.post(
        "/v1/responses", json={"input": "Hello", "max_output_tokens": 2, "service_tier": "auto"}
    ).json()
    assert (response["store"], response["service_tier"]) == (False, "default")


def test_the_limit_in_an_error_is_explained(client: httpx.Client) -> None:
    card = client.get("/v1/models").json()["data"][0]
    error = client.post(CHAT, json=_question("word " * 300, max_tokens=100)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"at most {card['context_length'] - 100} fit" in error["message"]
    assert f"a context of {card['context_length']} tokens, of which 100 are reserved" in error["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/status", "/v1/models", "/v1/models/small", "/docs", "/"])
def test_head_is_answered_like_get_without_a_body(client: httpx.Client, path: str) -> None:
    head = client.head(path)
    get = client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/health", "GET, HEAD, OPTIONS"), ("/v1/models", "GET, HEAD, OPTIONS"), (CHAT, "OPTIONS, POST")],
)
def test_options_names_the_methods(client: httpx.Client, path: str, methods: str) -> None:
    answer = client.options(path)
    assert answer.status_code == 204
    assert answer.headers["allow"] == methods
    assert client.delete(path).status_code == 405
    assert client.delete(path).headers["allow"] == methods


def test_a_model_with_several_names_answers_to_each(small_model: Any) -> None:
    with serving(small_model, model_name=("first", "gpt-4o", "first")) as (client, _):
        cards = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == ["first", "gpt-4o"]
        assert {card["root"] for card in cards} == {"first"}
        assert client.get("/v1/models/gpt-4o").json()["id"] == "gpt-4o"
        for fields, name in (({}, "first"), ({"model": "first"}, "first"), ({"model": "gpt-4o"}, "gpt-4o")):
            assert client.post(CHAT, json=_question(**fields)).json()["model"] == name
            asked = {"input": "Hello", "max_output_tokens": 2, **fields}
            assert client.post("/v1/responses", json=asked).json()["model"] == name
        assert client.post(CHAT, json=_question(model="small")).status_code == 404


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: httpx.Client) -> None:
    text = client.post(CHAT, json=_question(max_tokens=40)).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:3]
    cut = client.post(CHAT, json=_question(max_tokens=40, stop=[stop])).json()["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["message"]["content"] == text[: text.index(stop)].strip()


def test_models_and_health(client: httpx.Client) -> None:
    card = client.get("/v1/models").json()["data"][0]
    assert card == client.get("/v1/models/small").json()
    assert card["context_length"] == card["max_model_len"] == 512
    assert card["image_tokens"] == 8
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json()["model"] == "small"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "invalid_request_error", "messages"),
        (
            {"messages": [{"role": "system", "content": [_picture()]}, {"role": "user", "content": "x"}]},
            400,
            "invalid_request_error",
            "messages[0].content",
        ),
        (_question(model="gpt-4"), 404, "model_not_found", "model"),
        (_question("Q", *["red"] * 9), 400, "invalid_request_error", "messages"),
        (_question("word " * 2000), 400, "context_length_exceeded", "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
            400,
            "invalid_request_error",
            "messages[0].content[0].image_url",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
                    }
                ]
            },
            400,
            "invalid_image",
            "messages[0].content[0].image_url",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_their_status_and_openais_shape(
    client: httpx.Client, body: dict[str, Any], status: int, code: str, param: str, stream: bool
) -> None:
    answer = client.post(CHAT, json={**body, "stream": stream})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith(".")
    assert answer.headers["x-request-id"]


def test_a_truncated_image_is_refused_before_the_stream(client: httpx.Client) -> None:
    data = encode(draw("red", (300, 300)))
    url = "data:image/png;base64," + base64.b64encode(data[: len(data) // 2]).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = client.post(CHAT, json={"messages": [{"role": "user", "content": content}], "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", CHAT, 405), ("PUT", "/health", 405)]
)
def test_wrong_addresses(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_response_has_the_requests_id_or_a_new_one(client: httpx.Client) -> None:
    assert client.get("/health", headers={"x-request-id": "mine"}).headers.get_list("x-request-id") == ["mine"]
    assert client.get("/health").headers["x-request-id"].startswith("req-")


def test_a_client_that_leaves_frees_its_slot(served: tuple[httpx.Client, ChatService]) -> None:
    client, service = served
    before = local_engine(service).stats().aborted
    long = _question(max_tokens=400, min_tokens=400, stream=True)
    with few_steps(service):
        with client.stream("POST", CHAT, json=long) as answer:
            next(answer.iter_text())
        wait_until_abort_is_sent(service)
    stats = settled(service)
    assert stats.aborted == before + 1


def test_a_client_leaving_a_whole_answer_frees_its_slot(
    served: tuple[httpx.Client, ChatService],
) -> None:
    client, service = served
    before = local_engine(service).stats()
    body = json.dumps(_question(max_tokens=400, min_tokens=400)).encode()
    with few_steps(service):
        with _sent(client, body, len(body)):
            deadline = time.monotonic() + 60
            while local_engine(service).stats().generated_tokens == before.generated_tokens:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        wait_until_abort_is_sent(service)
    assert settled(service).aborted == before.aborted + 1


@contextmanager
def _sent(client: httpx.Client, body: bytes, declared: int) -> Iterator[socket.socket]:
    """A connection on which a question was sent, or only a part of what was declared."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {declared}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        yield connection


def test_a_full_server_refuses_before_reading_the_body(small_model: Any) -> None:
    with serving(small_model, engine=EngineSettings(max_running=1, max_waiting=0)) as (client, service):
        long = _question(max_tokens=400, min_tokens=400, stream=True)
        with few_steps(service), client.stream("POST", CHAT, json=long) as answer:
            pieces = answer.iter_text()  # kept: an iterator that is dropped closes the stream
            next(pieces)
            before = local_engine(service).stats()
            with _sent(client, b"{", declared=1_000_000) as connection:
                assert connection.recv(100).startswith(b"HTTP/1.1 429 ")
            refused = client.post(CHAT, json=_question("What is it?", "red"))
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        assert settled(service).image_decodes == before.image_decodes
        with _sent(client, b"{", declared=1_000_000):
            assert client.post(CHAT, json=_question()).status_code == 200, "an unfinished body takes no place"


async def test_requests_being_prepared_count_as_capacity(
    served: tuple[httpx.Client, ChatService], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, service = served
    monkeypatch.setattr(local_engine(service), "_admission", Admission(max_running=1, max_waiting=1))
    reading: asyncio.Future[list[EncodedImage]] = asyncio.get_running_loop().create_future()

    async def read(_: Any) -> list[EncodedImage]:
        return await asyncio.shield(reading)

    monkeypatch.setattr(service._images, "read", read)
    wanted = parse_chat_request(json.dumps(_question()).encode())
    first, second = (asyncio.create_task(service.prepare(wanted)) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await service.prepare(wanted)
    reading.set_result([])
    await asyncio.gather(first, second)
    await service.check_capacity()


def test_the_body_is_limited(small_model: Any) -> None:
    with serving(small_model, max_body_bytes=2000) as (client, _):
        assert client.post(CHAT, json=_question("x" * 3000)).status_code == 413

        def trickle() -> Iterator[bytes]:
            for _ in range(50):
                yield b" " * 100

        answer = client.post(CHAT, content=trickle())  # no content-length to believe or not
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"


def test_every_route_but_health_needs_a_key(small_model: Any) -> None:
    with serving(small_model, api_key="sesame") as (client, _):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "sesame"},
        ):
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/status")):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "sesame" not in answer.text
        assert client.get("/health").status_code == 200
        assert client.post(CHAT, json=_question(), headers={"authorization": "Bearer sesame"}).status_code == 200


def test_when_busy_some_queue_and_others_are_refused(small_model: Any) -> None:
    settings = EngineSettings(max_running=1, max_waiting=1)

    async def crowd(url: str, service: ChatService) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            body = _question(max_tokens=150, min_tokens=100, stream=True)
            with few_steps(service):
                asked = [asyncio.ensure_future(client.post(CHAT, json=body)) for _ in range(6)]
                for refused in itertools.islice(asyncio.as_completed(asked), 4):
                    assert (await refused).status_code == 429
            return await asyncio.gather(*asked)

    with serving(small_model, engine=settings) as (client, service):
        answers = asyncio.run(crowd(str(client.base_url), service))
        settled(service)
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 429, 429, 429, 429]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in refused)
    waited = [answer for answer in answers if "x-minigpt4-queue-position" in answer.headers]
    assert len(waited) == 1
    assert waited[0].headers["x-minigpt4-queue-position"] == "1"
    assert waited[0].text.startswith(": waiting, 1 ahead")
    last = _events(waited[0].text)[-1]
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert last["timings"]["queue_s"] > 0


def test_every_request_fails_when_the_engine_dies(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(small_model) as (client, service):

        def broken(*_: Any) -> None:
            raise RuntimeError("secret words of a driver")

        monkeypatch.setattr(local_engine(service)._runner, "step", broken)
        answer = client.post(CHAT, json=_question(stream=True))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_failed"
        assert "secret" not in answer.text
        assert client.get("/health").status_code == 503
        assert client.post(CHAT, json=_question()).status_code == 503


async def test_health_checks_share_one_question(
    served: tuple[httpx.Client, ChatService], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, service = served
    asked = 0
    failure: list[Exception] = []

    async def check_health() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        for error in failure:
            raise error

    monkeypatch.setattr(service.engine, "check_health", check_health)
    monkeypatch.setattr(service, "_health", None)
    await asyncio.gather(*(service.check_health() for _ in range(300)))
    assert asked == 1
    monkeypatch.setattr(chat_service, "_HEALTH_S", 0.0)
    failure.append(EngineFailed("gone"))
    results = await asyncio.gather(*(service.check_health() for _ in range(300)), return_exceptions=True)
    assert {type(result) for result in results} == {EngineFailed}
    assert asked == 2
    failure.clear()
    await service.check_health()
    monkeypatch.setattr(service, "_health", None)
