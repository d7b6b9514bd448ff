"""The fake OpenAI server itself: what it refuses, and how its scripts, connections and threads behave."""

import asyncio
import base64
import json
import threading
from typing import Any

import httpx
import pytest
from drawing import draw, encode
from fakes.openai_replies import ENDLESS, KEY, USAGE, Answer, Cut, ErrorEvent, Feed, Gate, Reply, refusal
from fakes.openai_server import MODEL, OpenAIServer, bots_server, vision_server
from waiting import wait_until


def image(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def question(text: str = "Q", *parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"model": MODEL, "messages": [message], "stream": True, **fields}


def post(server: OpenAIServer, body: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/chat/completions", json=body, verify=False, **options)


def get(url: str) -> httpx.Response:
    return httpx.get(url, verify=False)


def deltas(stream: str) -> list[str]:
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return [text for chunk in chunks for choice in chunk.get("choices", []) if (text := choice["delta"].get("content"))]


RED = image(encode(draw("red")))
TURN = {"role": "user", "content": "Q"}


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        (question(beams=2), "unknown fields ['beams']"),
        (question("Q", {"type": "input_audio"}), "unknown parts ['input_audio']"),
        (question("Q", image(encode(draw("red")), "image/jpeg")), "image/png is declared as data:image/jpeg"),
        (question("Q", image(encode(draw("red")), "image/*")), "image/png is declared as data:image/*"),
        (question("Q", image(encode(draw("red", (300, 300)))[:300])), "not an image"),
        (question("Q", image(b"text")), "not an image"),
        (question("Q", {"type": "image_url", "image_url": {"url": "https://a.example/x"}}), "not a data: URL"),
        (question(stream=False), "not streamed"),
        (question(model="other"), "model other isn't listed"),
        (question(messages=[TURN, TURN]), "roles don't alternate"),
        (question(messages=[TURN, {"role": "assistant", "content": "A"}]), "roles don't alternate"),
        ({"model": MODEL}, "KeyError"),
    ],
)
def test_mistakes_are_refused_and_recorded(body: dict[str, Any], mistake: str) -> None:
    server = OpenAIServer()
    with pytest.raises(AssertionError, match="mistakes"), server:
        assert post(server, body).status_code in (400, 500)
    assert mistake in str(server.mistakes)
    assert server.requests == []


def test_more_paths_are_scripted() -> None:
    with OpenAIServer(pages={"/status": Reply(body={"engines": []})}) as server:
        assert get(f"{server.origin}/status").json() == {"engines": []}


def test_unknown_paths_are_mistakes() -> None:
    server = OpenAIServer()
    with pytest.raises(AssertionError, match="/health"), server:
        get(f"{server.origin}/health")


def test_keys_are_required_where_set() -> None:
    with OpenAIServer(key=KEY) as server:
        assert post(server, question()).status_code == 401
        assert get(f"{server.url}/models").status_code == 401
        assert post(server, question(), headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert [request.key for request in server.requests] == [KEY]


def test_other_models_are_refused_without_mistake() -> None:
    with vision_server() as server:
        assert post(server, question(model="other")).status_code == 404


def test_an_answer_is_streamed_or_whole() -> None:
    with vision_server() as server:
        stream = post(server, question("Q", RED, stream_options={"include_usage": True})).text
        whole = post(server, question("Q", RED, stream=False)).json()
    assert deltas(stream) == [whole["choices"][0]["message"]["content"]] == ["red"]
    assert stream.startswith(": waiting, 2 ahead\n\n")
    assert stream.endswith("data: [DONE]\n\n")
    assert json.dumps(USAGE) in stream
    assert whole["usage"] == USAGE


@pytest.mark.parametrize("answer", ["one two", ["one ", "two"], lambda _: "one two", [lambda _: ["one "], "two"]])
def test_answers_are_texts_lists_or_functions(answer: Any) -> None:
    with OpenAIServer(answers=[Reply(answer)]) as server:
        assert deltas(post(server, question()).text) == ["one ", "two"]


def test_replies_go_by_text_then_word_then_queue() -> None:
    with OpenAIServer(answers=["third", refusal(503, retry_after="9")]) as server:
        server.on("one two", "first", times=1)
        server.on_word("two", "second")
        texts = [deltas(post(server, question(text)).text) for text in ("one two", "one two", "one")]
        assert texts == [["first"], ["second"], ["third"]]
        refused = post(server, question("one"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "9")
        assert deltas(post(server, question("one")).text) == ["I ", "see ", "no ", "picture."]
    assert len(server.about("one two")) == 2


@pytest.mark.parametrize(("end", "code"), [(Cut(), None), (ErrorEvent("late"), "late")])
def test_streams_break_where_the_script_says(end: Cut | ErrorEvent, code: str | None) -> None:
    received = ""
    cut = False
    with OpenAIServer(answers=[Reply(["half ", end, "rest"])]) as server, httpx.Client(verify=False) as client:
        try:
            with client.stream("POST", f"{server.url}/chat/completions", json=question()) as response:
                for text in response.iter_text():
                    received += text
        except httpx.RemoteProtocolError:
            cut = True
    assert deltas(received) == ["half "]
    assert cut is (code is None)
    assert code is None or f'"code": "{code}"' in received
    assert "[DONE]" not in received


async def test_gates_and_feeds_are_opened_from_other_threads() -> None:
    gate = Gate()
    feed = Feed()
    with bots_server() as server:
        server.on("gate", Reply(["before ", gate, "after"]))
        server.on("feed", Reply(feed))
        server.on("hold", Reply("held", hold=gate))
        async with httpx.AsyncClient(verify=False) as client:
            bodies = [question("gate"), question("feed"), question("hold")]
            asking = [asyncio.create_task(client.post(f"{server.url}/chat/completions", json=body)) for body in bodies]
            await wait_until(lambda: server.active == 3)
            feed.add("one")
            threading.Thread(target=lambda: (feed.add("two"), feed.end(), gate.open())).start()
            answers = [deltas((await response).text) for response in asking]
    assert answers == [["before ", "after"], ["one", "two"], ["held"]]
    assert (server.max_active, server.active, server.aborted) == (3, 0, [])


@pytest.mark.parametrize("answer", [ENDLESS, Reply([Gate()]), Reply(hold=Gate()), Reply(Feed())])
async def test_clients_that_leave_early_are_recorded(answer: Answer) -> None:
    with OpenAIServer(answers=[answer]) as server:
        async with httpx.AsyncClient(verify=False) as client:
            asking = asyncio.create_task(client.post(f"{server.url}/chat/completions", json=question("left")))
            await wait_until(lambda: server.active)
            asking.cancel()
            await wait_until(lambda: server.aborted)
    assert [request.text for request in server.aborted] == ["left"]
    assert server.active == 0


async def test_a_stopped_server_comes_back_at_its_address() -> None:
    server = OpenAIServer(answers=[ENDLESS, "again"])
    async with httpx.AsyncClient(verify=False) as client:
        with server:
            asking = asyncio.create_task(client.post(f"{server.url}/chat/completions", json=question()))
            await wait_until(lambda: server.active)
            server.stop()
            with pytest.raises(httpx.TransportError):
                await asking
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{server.url}/models")
            server.start()
            assert deltas((await client.post(f"{server.url}/chat/completions", json=question())).text) == ["again"]
    assert server.aborted == [], "the server left, not the client"
