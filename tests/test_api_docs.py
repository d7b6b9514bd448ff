"""docs/api.md: its requests are sent to the embedded model, its tables are compared with the code."""

import contextlib
import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_blocks import code_blocks
from serving_app import serving

from minigpt4_serve import errors
from minigpt4_serve.settings import ModelSettings, ServeSettings
from minigpt4_serve.weights.load import load_model

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the embedded model."""
    with serving(load_model(ModelSettings(device="cpu")), model_name=None) as (client, _):  # as minigpt4 serve does
        yield str(client.base_url)


@pytest.fixture(scope="module")
def answers(address: str) -> list[str]:
    """The output of each of the page's requests, in order."""
    picture, *requests = [block for block in code_blocks(PAGE, "bash") if "curl" in block or "picture=" in block]
    return [
        subprocess.run(
            ["bash", "-ec", picture + request.replace("http://127.0.0.1:8000", address)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for request in requests
    ]


def test_the_requests_give_answers(answers: list[str]) -> None:
    whole, streamed, response, shaped, called = answers
    assert "star" in json.loads(whole)["choices"][0]["message"]["content"]
    assert "three" in _text(streamed).lower()
    assert streamed.endswith("data: [DONE]\n\n")
    assert json.loads(streamed.split("\n\n")[-3].removeprefix("data: "))["usage"]["completion_tokens"] > 0
    given = json.loads(response)
    assert given["status"] == "completed"
    assert "star" in given["output"][0]["content"][0]["text"]
    scene = json.loads(json.loads(shaped)["choices"][0]["message"]["content"])
    assert scene["background"] in (
        "white",
        "black",
        "gray",
    )  # the shape is promised, not what so small a model sees in it
    assert isinstance(scene["objects"], int)
    (call,) = json.loads(called)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "report"
    assert json.loads(call["function"]["arguments"])["background"] in ("white", "black", "gray")


def _text(stream: str) -> str:
    events: list[dict[str, Any]] = [
        json.loads(line.removeprefix("data: ")) for line in stream.split("\n\n") if line.startswith("data: {")
    ]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def test_the_python_example_runs(address: str) -> None:
    (code,) = code_blocks(PAGE, "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("http://127.0.0.1:8000", address), "docs/api.md", "exec"), {})
    assert printed.getvalue().strip()


def test_the_tables_are_true() -> None:
    settings = ServeSettings()
    pictures = PAGE.split("## Pictures")[1].split("\n## ")[0]
    limits = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", pictures, re.MULTILINE))
    assert len(limits) >= 8
    for name, shown in limits.items():
        value = getattr(settings, name)
        expected = {"none": ()}.get(shown, shown)
        if shown.endswith("MiB"):
            expected = int(shown.split()[0]) * 2**20
        elif shown.endswith("million"):
            expected = int(shown.split()[0]) * 10**6
        assert str(value) == str(expected), name
    assert settings.max_request_s == 600
    kinds = [getattr(errors, name) for name in errors.__all__]
    real = {(str(kind.status), kind.code) for kind in kinds}
    documented = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert documented <= real
    inner = {"cut_short", "internal_error", "server_unreachable", "weights_error"}
    assert {code for _, code in real} - inner == {code for _, code in documented}


def test_every_refused_field_is_named() -> None:
    from minigpt4_serve.server.openai.chat_request import _REFUSED as CHAT
    from minigpt4_serve.server.openai.chat_request import REFUSED
    from minigpt4_serve.server.openai.responses_request import _REFUSED as RESPONSES

    refused = " ".join(PAGE.split("Fields that this server doesn't support")[1].split("Unknown fields")[0].split())
    words = {
        "audio": "audio",
        "functions": "functions",
        "function_call": "functions",
        "modalities": "audio",
    }
    words |= {"web_search_options": "web search"}
    for name in {*REFUSED, *CHAT, *RESPONSES}:
        assert re.search(words.get(name, f"`{name}[`:]"), refused), name
