"""The converted folders answer over the HTTP API what the original answered. No Ray: the same app, called directly."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from golden_chats import VARIANTS, chats, convert_recorded

from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.local_engine import load_engine
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest
from minigpt4_serve.settings import ModelSettings, ServeSettings

Served = tuple[httpx.AsyncClient, ChatService, dict[str, Any]]


@pytest.fixture(params=VARIANTS)
async def served(request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> AsyncIterator[Served]:
    """(client of a server with the variant's model, its service, what the original gave)."""
    expected = convert_recorded(golden, request.param, tmp_path / "model")
    engine, service = load_engine(ServeSettings(model=ModelSettings(path=tmp_path / "model", device="cpu")))
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=60) as client:
        yield client, service, expected
    engine.shutdown()


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
