"""Sources of the command line's answers: servers of all kinds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import Reply
from fakes.openai_server import OpenAIServer, vision_server

from minigpt4_serve.cli.sources import RemoteModel, user_message
from minigpt4_serve.client import Completed, TextDelta
from minigpt4_serve.errors import EngineFailed, InvalidRequest, ModelNotFound, ServerUnreachable


def stream(*steps: dict[str, Any]) -> Reply:
    return Reply([*steps, b"data: [DONE]\n\n"], bare=True)


def chunk(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}], **more}


PAGE = Reply(body=b"<!doctype html>\n<p>Hello", content_type="text/html")
LISTED = Reply(body={"data": [{"id": "theirs"}]})
FINE = stream(chunk("a "), chunk("disc"), chunk("", "stop"))


def answering(models: Reply, chat: Reply, path: str = "/v1") -> OpenAIServer:
    """A server that always sends these replies."""
    return OpenAIServer(models_reply=models, default=chat, path=path, chats=False)


def reply_with_models(server: OpenAIServer) -> list[str]:
    return [request.body["model"] for request in server.requests]


@dataclass
class Answered:
    text: str
    end: Completed


def ask(url: str, model: str | None = None, content: Any = "Q") -> Answered:
    source = RemoteModel(url, model=model)
    try:
        *deltas, end = source.answer([{"role": "user", "content": content}])
    finally:
        source.close()
    assert isinstance(end, Completed)
    return Answered("".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), end)


@pytest.mark.parametrize(
    ("models", "model"),
    [
        (LISTED, "theirs"),
        (Reply(body={"data": []}), "default"),
        (Reply(body={"data": None}), "default"),
        (Reply(body=[]), "default"),
        (PAGE, "default"),
    ],
)
def test_the_only_listed_model_is_asked(models: Reply, model: str) -> None:
    with answering(models, FINE) as server:
        assert ask(server.origin).text == "a disc"
        assert reply_with_models(server) == [model]


def test_one_of_several_models_must_be_named() -> None:
    with answering(Reply(body={"data": [{"id": "a"}, {"id": "b"}]}), FINE) as server:
        with pytest.raises(ModelNotFound, match="name the one to ask in MINIGPT4_MODEL"):
            ask(server.origin)
        assert reply_with_models(server) == []
        assert ask(server.origin, model="b").text == "a disc"
        assert reply_with_models(server) == ["b"]


@pytest.mark.parametrize(
    ("models", "chat"),
    [
        (Reply(body=b"<html>"), FINE),
        (PAGE, PAGE),
        (LISTED, PAGE),
        (LISTED, Reply(body=[])),
        (LISTED, Reply(bare=True)),
        (LISTED, Reply([b"data: {not json\n\n"], bare=True)),
        (LISTED, Reply([b"data: 5\n\n"], bare=True)),
        (LISTED, stream({"choices": ["words"]})),
    ],
)
def test_unreadable_responses_are_one_clear_error(models: Reply, chat: Reply) -> None:
    with answering(models, chat) as server, pytest.raises(EngineFailed, match=f"{server.url}: .* can't be understood"):
        ask(server.origin)


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": 3, "completion_tokens": 2}])
def test_usage_of_any_shape_is_accepted(usage: Any) -> None:
    with answering(LISTED, stream(chunk("a disc", "stop"), {"choices": [], "usage": usage})) as server:
        answer = ask(server.origin)
    assert (answer.text, answer.end.prompt_tokens) == ("a disc", 3 if usage else None)


def test_cached_tokens_and_dropped_messages_are_kept() -> None:
    used = {"prompt_tokens": 52, "completion_tokens": 14, "prompt_tokens_details": {"cached_tokens": 40}}
    with answering(
        LISTED, stream(chunk("a disc", "stop"), {"choices": [], "usage": used, "dropped_messages": 2})
    ) as server:
        answer = ask(server.origin)
    assert answer.end == Completed("stop", 52, 40, 14, dropped_messages=2)


@pytest.mark.parametrize(("given", "path"), [("", "/v1"), ("/", "/v1"), ("/v1/", "/v1"), ("/gpt/api", "/gpt/api")])
def test_v1_is_added_where_there_is_no_path(given: str, path: str) -> None:
    with answering(LISTED, FINE, path) as server:
        assert ask(server.origin + given).text == "a disc"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images_are_sent_with_their_type(kind: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(encode(draw("red"), kind))
    with vision_server() as server:  # it refuses other formats, and images that are declared as something else
        ask(server.url, content=user_message("Q", [tmp_path / "image"])["content"])
    if kind not in ("BMP", "TIFF"):
        assert server.requests[0].images == [(tmp_path / "image").read_bytes()]


def test_wrong_and_unreachable_addresses_are_clear_errors() -> None:
    with pytest.raises(InvalidRequest, match="should look like"):
        RemoteModel("127.0.0.1:8000")
    with answering(LISTED, FINE) as server:
        pass
    with pytest.raises(ServerUnreachable, match=server.origin):
        ask(server.origin)
