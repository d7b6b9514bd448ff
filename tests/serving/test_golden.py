"""The converted folders answer over the HTTP API what the original answered. No Ray: the same app, called directly."""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from minigpt4_serve.serving.api import ChatCompletionRequest
from minigpt4_serve.serving.chat import ChatService
from minigpt4_serve.serving.replica import load_engine
from minigpt4_serve.serving.routes import create_app
from minigpt4_serve.settings import ModelSettings, ServeSettings
from minigpt4_serve.weights.convert import convert

Served = tuple[httpx.AsyncClient, ChatService, dict[str, Any]]
VARIANTS = {"v1_vicuna": "vicuna", "v1_llama2": "llama2", "v2": "v2"}


@pytest.fixture(params=VARIANTS)
async def served(request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> AsyncIterator[Served]:
    """(client of a server with the variant's model, its service, what the original gave)."""
    expected = json.loads((golden / request.param / "expected.json").read_text(encoding="utf-8"))
    convert(
        variant=VARIANTS[request.param],  # type: ignore[arg-type]
        llm=golden / expected["files"]["llm"],
        vit=golden / "weights" / "eva_vit_g.pth",
        qformer=golden / "weights" / "blip2_pretrained_flant5xxl.pth" if request.param == "v1_vicuna" else None,
        checkpoint=golden / expected["files"]["ckpt"],
        out=tmp_path / "model",
    )
    engine, service = load_engine(ServeSettings(model=ModelSettings(path=tmp_path / "model", device="cpu")))
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=60) as client:
        yield client, service, expected
    engine.shutdown()


def chats(expected: dict[str, Any], golden: Path) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(messages, recorded answers) of every turn that a client can ask for."""
    names = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))["images"]
    pictures = [base64.b64encode((golden / "inputs" / name).read_bytes()).decode() for name in names]
    found = []
    for key, case in expected["cases"].items():
        if key in ("truncated", "stream_history"):
            continue  # the demo's left truncation and its forgotten answers are not copied
        messages: list[dict[str, Any]] = []
        recorded = iter(case["turns"])
        parts: list[dict[str, Any]] = []
        for step, *argument in case["steps"]:
            if step == "image":
                url = f"data:image/png;base64,{pictures[argument[0]]}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            elif step == "ask":
                messages.append({"role": "user", "content": [*parts, {"type": "text", "text": argument[0]}]})
                parts = []
            else:
                turn = next(recorded)
                found.append((list(messages), turn["result"]))
                messages.append({"role": "assistant", "content": turn["messages_after"][-1][1]})
    return found


async def test_greedy_answers_over_http_are_the_originals(served: Served, golden: Path) -> None:
    client, _, expected = served
    asked = chats(expected, golden)
    assert len(asked) >= 7
    for messages, results in asked:
        recorded = results["greedy"]
        body = {"messages": messages, "temperature": 0, "repetition_penalty": 1.0}
        answer = await client.post(
            "/chat/completions", json={**body, "max_tokens": recorded["kwargs"]["max_new_tokens"]}
        )
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        assert choice["message"]["content"] == recorded["stored_message"]
        assert choice["finish_reason"] == ("stop" if len(recorded["ids"]) <= 24 else "length")


async def test_beam_searches_find_what_the_originals_found(served: Served, golden: Path) -> None:
    _, service, expected = served
    asked = chats(expected, golden)
    for messages, results in asked:
        request = ChatCompletionRequest.model_validate(
            {"messages": messages, "beams": 2, "max_tokens": results["beam2"]["kwargs"]["max_new_tokens"]}
        )
        chat = await service.prepare(request)
        # The original ended all hypotheses when the first held a stop string; recorded without them is plain search.
        rules = replace(chat.sampling, stop=(), repetition_penalty=1.0)
        ids: list[int] = []
        async for delta in service.engine.generate(chat.prompt, rules, request_id="beams"):
            ids += delta.token_ids
        recorded = results["beam2_no_stop_strings"]["ids"]
        assert ids == (recorded[1:] if recorded[0] == 1 else recorded)
    assert len(asked) >= 7
