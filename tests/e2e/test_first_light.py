"""First steps: the server with the command line and with other projects' clients."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from drawing import draw, encode
from processes import run

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


def _url(color: str) -> str:
    return "data:image/png;base64," + base64.b64encode(encode(draw(color, (320, 240)))).decode()


def _ask(color: str, question: str) -> list[dict[str, object]]:
    picture = {"type": "image_url", "image_url": {"url": _url(color)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


@pytest.fixture
def client(server_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server_url, api_key="none", max_retries=0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "green.png"
    path.write_bytes(encode(draw("green", (320, 240))))
    return path


def test_the_openai_client_gets_answers_to_follow_ups(client: openai.OpenAI) -> None:
    messages = _ask("red", "What is in this picture?")
    first = client.chat.completions.create(model="minigpt4-tiny", messages=messages)
    answer = first.choices[0].message.content or ""
    assert "red" in answer
    assert "circle" in answer
    assert first.choices[0].finish_reason == "stop"
    assert first.usage is not None
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "How many objects are there?"},
    ]
    second = client.chat.completions.create(model="minigpt4-tiny", messages=messages)
    assert "one" in (second.choices[0].message.content or "").lower()
    # Only the new part of the follow-up's prompt is prefilled.
    details = second.usage.prompt_tokens_details if second.usage else None
    assert details is not None
    assert (details.cached_tokens or 0) > first.usage.prompt_tokens * 0.7


def test_the_openai_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="minigpt4-tiny",
        messages=_ask("blue", "What color is it?"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "blue" in text
    assert not text.startswith(" ")
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}


def test_the_model_card_lists_capabilities(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == "minigpt4-tiny"
    extra = card.model_extra or {}
    assert extra["capabilities"]["vision"] is True
    assert extra["context_length"] >= 512
    assert extra["image_tokens"] > 0
    assert extra["max_images"] >= 1
    assert client.models.retrieve("minigpt4-tiny").id == "minigpt4-tiny"


def test_errors_keep_their_status_and_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=_ask("red", "Q"))
    assert missing.value.code == "model_not_found"
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}]
    question = [{"role": "user", "content": parts}]
    with pytest.raises(openai.BadRequestError) as damaged:
        client.chat.completions.create(model="minigpt4-tiny", messages=question, stream=True)
    assert damaged.value.code == "invalid_image"
    assert damaged.value.param == "messages[0].content[0].image_url"
    assert damaged.value.response.headers["x-request-id"]


def test_the_llm_command_line_sends_images(server_url: str, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: minigpt4\n  model_name: minigpt4-tiny\n  api_base: {server_url}\n  vision: true\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    llm = str(Path(sys.executable).with_name("llm"))
    done = subprocess.run(
        [llm, "-m", "minigpt4", "What color is the circle?", "-a", str(picture)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "green" in done.stdout


def test_minigpt4_ask_uses_a_server(server: str, picture: Path) -> None:
    done = run("ask", str(picture), "What color is the circle?", "--server", server)
    assert done.returncode == 0, done.stderr
    assert "green" in done.stdout


def test_minigpt4_chat_uses_a_server(server: str, picture: Path) -> None:
    done = run("chat", str(picture), "--server", server, stdin="What is in this picture?\nWhat color is it?\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("green") == 2


def test_health_and_readiness(server: str) -> None:
    import json
    import urllib.request

    for path in ("health", "ready"):
        with urllib.request.urlopen(f"{server}/{path}") as answer:
            assert json.load(answer)["status"] in ("ok", "ready")
