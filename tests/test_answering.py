"""Where the command line's answers come from: servers of all kinds, and a chat that survives its failures."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from typer.testing import CliRunner

from minigpt4_serve import cli
from minigpt4_serve.answering import Answer, RemoteModel
from minigpt4_serve.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, ModelNotFound, ServerUnreachable

JSON, STREAM, HTML = "application/json", "text/event-stream", "text/html"
Reply = tuple[str, str | bytes]

PAGE = (HTML, "<!doctype html>\n<p>Hello")
LISTED = (JSON, '{"data": [{"id": "theirs"}]}')


def stream(*pieces: dict[str, Any]) -> Reply:
    return STREAM, "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"


def said(words: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": reason}], **more}


FINE = stream(said("a "), said("disc"), said("", "stop"))


@contextmanager
def answering(models: Reply, chat: Reply, *, prefix: str = "/v1") -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the models it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == f"{prefix}/models"
            self._say(*models)

        def do_POST(self) -> None:
            assert self.path == f"{prefix}/chat/completions"
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["model"])
            self._say(*chat)

        def _say(self, kind: str, body: str | bytes) -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def ask(url: str, model: str | None = None) -> Answer:
    source = RemoteModel(url, model=model)
    try:
        answer = source.answer([{"role": "user", "content": "Q"}])
        assert "".join(answer) == answer.text
        return answer
    finally:
        source.close()


@pytest.mark.parametrize(
    ("models", "model"),
    [
        (LISTED, "theirs"),
        ((JSON, '{"data": []}'), "default"),
        ((JSON, '{"data": null}'), "default"),
        ((JSON, "[]"), "default"),
        (PAGE, "default"),
    ],
)
def test_lists_of_models(models: Reply, model: str) -> None:
    with answering(models, FINE) as (url, asked):
        assert ask(url).text == "a disc"
        assert asked == [model]


def test_several_models_are_not_guessed_from() -> None:
    with answering((JSON, '{"data": [{"id": "a"}, {"id": "b"}]}'), FINE) as (url, asked):
        with pytest.raises(ModelNotFound, match="name the one to ask in MINIGPT4_MODEL"):
            ask(url)
        assert asked == []
        assert ask(url, model="b").text == "a disc"
        assert asked == ["b"]


@pytest.mark.parametrize(
    ("models", "chat"),
    [
        ((JSON, "<html>"), FINE),
        (PAGE, PAGE),
        (LISTED, PAGE),
        (LISTED, (JSON, "[]")),
        (LISTED, (STREAM, "")),
        (LISTED, (STREAM, "data: {not json\n\n")),
        (LISTED, (STREAM, "data: 5\n\n")),
        (LISTED, stream({"choices": ["words"]})),
    ],
)
def test_what_is_no_answer_is_one_sentence(models: Reply, chat: Reply) -> None:
    with answering(models, chat) as (url, _), pytest.raises(EngineFailed, match=f"{url}/v1 can't be understood"):
        ask(url)


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": 3, "completion_tokens": 2}])
def test_usage_of_any_shape(usage: Any) -> None:
    with answering(LISTED, stream(said("a disc", "stop"), {"choices": [], "usage": usage})) as (url, _):
        answer = ask(url)
    assert (answer.text, answer.prompt_tokens) == ("a disc", 3 if usage else 0)


def test_what_our_server_adds_is_kept() -> None:
    used = {"prompt_tokens": 52, "completion_tokens": 14, "prompt_tokens_details": {"cached_tokens": 40}}
    with answering(LISTED, stream(said("a disc", "stop"), {"choices": [], "usage": used, "dropped_messages": 2})) as at:
        answer = ask(at[0])
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (52, 40, 14)
    assert answer.dropped_messages == 2


@pytest.mark.parametrize(("path", "prefix"), [("", "/v1"), ("/", "/v1"), ("/v1/", "/v1"), ("/gpt/api", "/gpt/api")])
def test_v1_is_added_where_there_is_no_path(path: str, prefix: str) -> None:
    with answering(LISTED, FINE, prefix=prefix) as (url, _):
        assert ask(url + path).text == "a disc"


def test_no_address_and_nobody_there() -> None:
    with pytest.raises(InvalidRequest, match="should look like"):
        RemoteModel("127.0.0.1:8000")
    with answering(LISTED, FINE) as (url, _):
        pass
    with pytest.raises(ServerUnreachable, match=url):
        ask(url)


class Scripted:
    """A source that stumbles over some questions."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []

    def answer(self, messages: list[dict[str, Any]], **_: Any) -> Answer:
        words = [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in messages]
        self.heard.append(words)
        if words[-1] == "long":
            raise ContextLengthExceeded("This is too long.")
        if words[-1] == "stopped":
            raise KeyboardInterrupt
        return Answer(pieces=iter([f"about {words[-1]}"]))

    def close(self) -> None:
        self.heard.append(["closed"])


def test_a_chat_goes_on_after_a_question_that_can_not_be_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "red.png"
    picture.write_bytes(encode(draw("red")))
    source = Scripted()
    monkeypatch.setattr(cli, "_source", lambda *_: source)
    done = CliRunner().invoke(cli.app, ["chat", str(picture)], input="first\nlong\nstopped\nlast\n\n")
    assert done.exit_code == 0, done.output
    assert "minigpt4: This is too long." in done.output
    assert source.heard == [
        ["first"],
        ["first", "about first", "long"],
        ["first", "about first", "stopped"],
        ["first", "about first", "stopped", "", "last"],
        ["closed"],
    ]
