"""Servers by others: what they leave out, refuse, or say in their own way must not stop an agent from seeing."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import Cut, Gate, Reply
from fakes.openai_server import OpenAIServer

from minigpt4_serve.client import TokenUsage, VisionAnswer, VisionClient
from minigpt4_serve.durations import describe_wait
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.images import EncodedImage

DATA = encode(draw())
PICTURE = EncodedImage(hashlib.sha256(DATA).hexdigest(), DATA)
SECRET = "sk-upstream-1"


def serving(models: Reply, *chat: Reply) -> OpenAIServer:
    """A server that sends exactly these replies."""
    return OpenAIServer(models_reply=models, answers=list(chat), chats=False)


async def ask(server: OpenAIServer, **settings: Any) -> VisionAnswer:
    return await VisionClient(server.url, **{"max_wait_s": 0, **settings}).ask("Q", [PICTURE])


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(body=value, status=status, headers={name.replace("_", "-"): text for name, text in headers.items()})


def stream(*steps: Any, done: bool = True) -> Reply:
    return Reply([*steps, b"data: [DONE]\n\n"] if done else steps, bare=True)


def chunk(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def coded(code: str, status: int, **headers: str) -> Reply:
    return as_json({"error": {"message": SECRET, "code": code}}, status, **headers)


LISTED = as_json({"object": "list", "data": [{"id": "theirs", "object": "model"}]})
WORDS = chunk({"content": "a disc"})
CRLF = f"data: {json.dumps(WORDS)}\r\n\r\n".encode()
END = chunk({}, "stop")
WHOLE = {"choices": [{"message": {"role": "assistant", "content": "a disc"}, "finish_reason": "stop"}]}
FINE = stream(WORDS, END)

UNDERSTOOD: dict[str, tuple[Reply, Reply]] = {
    "with everything": (LISTED, stream(chunk({"role": "assistant", "content": ""}), WORDS, END)),
    "no list of models": (as_json({"detail": "Not Found"}, 404), FINE),
    "a list that may not be asked for": (as_json({}, 405), FINE),
    "an empty list": (as_json({"data": []}), FINE),
    "a bare list": (as_json([{"id": "theirs"}]), FINE),
    "a web page for a list": (Reply(body=b"<html>", content_type="text/html"), FINE),
    "no stream": (LISTED, as_json(WHOLE)),
    "no finish reason": (LISTED, stream(WORDS)),
    "no end mark": (LISTED, stream(WORDS, END, done=False)),
    "empty pieces": (LISTED, stream({"id": "1"}, {"choices": []}, chunk(None), chunk({"content": None}), WORDS, END)),
    "usage of other shapes": (LISTED, stream(WORDS, {**END, "usage": []}, {"choices": [], "usage": {}})),
    "timings of another shape": (LISTED, stream({**WORDS, "timings": "fast"}, END)),
    "comments and other line ends": (
        LISTED,
        stream(b": wait\r\n\r\n", CRLF, END),
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_deviations_of_other_servers_are_understood(name: str) -> None:
    with serving(*UNDERSTOOD[name]) as server:
        answer = await ask(server)
        assert answer.text == "a disc"
        assert isinstance(server.requests[0].body["model"], str)


async def test_usage_without_details_is_read() -> None:
    used = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    with serving(LISTED, stream(WORDS, {**END, "usage": used})) as server:
        assert (await ask(server)).usage == TokenUsage(prompt_tokens=3, completion_tokens=2)


async def test_an_answer_cut_by_the_server_is_marked() -> None:
    with serving(LISTED, stream(WORDS, chunk({}, "length"))) as server:
        answer = await ask(server)
        assert answer.truncated
        assert "was longer" in answer.for_model()


@pytest.mark.parametrize(
    "refusal",
    [
        as_json({"error": {"message": "Unsupported value: 'temperature' does not support 0"}}, 400),
        as_json({"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs"}]}, 422),
    ],
)
async def test_refused_options_are_left_out_from_then_on(refusal: Reply) -> None:
    also = as_json({"detail": "stream_options is not permitted"}, 422)
    with serving(LISTED, refusal, also, FINE, FINE) as server:
        client = VisionClient(server.url)
        assert (await client.ask("A", [PICTURE])).text == "a disc"
        assert (await client.ask("B", [PICTURE])).text == "a disc"
        options = [sorted(set(request.body) & {"temperature", "stream_options"}) for request in server.requests]
        assert options == [["stream_options", "temperature"], ["stream_options"], [], []]


FAILED: dict[str, tuple[Callable[[], Reply], str]] = {
    "cut in the middle": (lambda: stream(WORDS, Cut()), "lost in the middle"),
    "cut before the first piece": (lambda: stream(Cut()), "can't be reached"),
    "silent after the first piece": (lambda: stream(WORDS, Gate()), "in time"),
    "a web page": (lambda: Reply(body=b"<html>hi</html>", content_type="text/html"), "can't be understood"),
    "not JSON": (lambda: stream(b"data: {not json\n\n"), "can't be understood"),
    "not even an object": (lambda: stream(b"data: 5\n\n"), "can't be understood"),
    "a list for a completion": (lambda: as_json([WHOLE]), "can't be understood"),
    "an error with status 200": (lambda: as_json({"error": {"message": SECRET}}), "failed while answering"),
    "an error inside the stream": (lambda: stream(WORDS, {"error": {"message": SECRET}}), "failed while answering"),
    "an error that is a text": (lambda: stream(WORDS, {"error": SECRET}), "failed while answering"),
    "no words": (lambda: stream(chunk({"content": " \n"}), END), "other words"),
    "a code that is a number": (lambda: as_json({"error": {"message": SECRET, "code": 400}}, 400), "refused this"),
    "a refusal in plain text": (
        lambda: Reply(body=SECRET.encode(), status=503, content_type="text/plain"),
        "failed while answering",
    ),
    "a deadline": (lambda: coded("deadline_exceeded", 408), "time for this request ran out"),
    "a deadline of another server": (lambda: as_json({}, 408), "time for this request ran out"),
    "a deadline inside the stream": (
        lambda: stream(WORDS, {"error": {"message": SECRET, "code": "deadline_exceeded"}}),
        "time for this request ran out",
    ),
    "a share that is used up": (
        lambda: coded("rate_limit_exceeded", 429, retry_after="43000"),
        "The key's share .* try again in 12 hours",
    ),
    "busy until a date": (
        lambda: as_json({}, 429, retry_after="Fri, 01 Jan 2100 00:00:00 GMT"),
        "busy; try again in",
    ),
}


@pytest.mark.parametrize("name", FAILED)
async def test_failures_are_clear_errors_without_secrets(name: str) -> None:
    reply, words = FAILED[name]
    with serving(LISTED, reply()) as server:
        with pytest.raises(MiniGPT4Error, match=words) as failed:
            await ask(server, timeout_s=0.3 if "silent" in name else 60)
        assert SECRET not in failed.value.message


@pytest.mark.parametrize(
    ("wait_s", "words"),
    [
        (0, "1 second"),
        (1.2, "2 seconds"),
        (89.5, "90 seconds"),
        (90, "2 minutes"),
        (3600, "60 minutes"),
        (43000, "12 hours"),
        (86400, "24 hours"),
        (30 * 86400, "30 days"),
    ],
)
def test_waits_are_shown_in_their_unit(wait_s: float, words: str) -> None:
    assert describe_wait(wait_s) == words


@pytest.mark.parametrize(("status", "words"), [(401, "the key"), (500, "failed")])
async def test_a_refused_list_of_models_is_an_error(status: int, words: str) -> None:
    with serving(as_json({}, status), FINE) as server:
        with pytest.raises(MiniGPT4Error, match=words):
            await ask(server)
        assert server.requests == []
