"""Recent responses: conversations continue by reference, within a key, a time and a size."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving_app import serving

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.http import body_budget
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key
from minigpt4_serve.server.openai import recent_responses
from minigpt4_serve.server.openai.recent_responses import ResponseHistory

RESPONSES = "/v1/responses"


def _words(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _texts(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"] for item in items]


def test_a_chain_of_responses_is_one_conversation() -> None:
    recent = ResponseHistory(10**6, 60)
    recent.add("alice", "r1", None, _words("one"))
    recent.add("alice", "r2", "r1", _words("two"))
    recent.add("alice", "r3", "r1", _words("another two"))
    alice = recent.of_key("alice")
    assert _texts(alice.items_until("r2")) == ["one", "two"]
    assert _texts(alice.items_until("r3")) == ["one", "another two"]


def test_another_key_finds_nothing() -> None:
    recent = ResponseHistory(10**6, 60)
    recent.add("alice", "r1", None, [{"id": "msg_1", "content": "one"}])
    for other in ("bob", ""):
        with pytest.raises(InvalidRequest):
            recent.of_key(other).items_until("r1")
        with pytest.raises(InvalidRequest):
            recent.of_key(other).item("msg_1", param="input[0]")
    assert recent.of_key("alice").item("msg_1", param="input[0]")["content"] == "one"


def test_responses_are_dropped_after_their_last_use() -> None:
    clock = [0.0]
    recent = ResponseHistory(10**6, 60, now=lambda: clock[0])
    recent.add("alice", "used", None, _words("used"))
    recent.add("alice", "unused", None, _words("unused"))
    clock[0] = 50
    assert recent.of_key("alice").items_until("used")
    clock[0] = 100
    assert recent.of_key("alice").items_until("used")
    with pytest.raises(InvalidRequest) as refused:
        recent.of_key("alice").items_until("unused")
    assert refused.value.param == "previous_response_id"


def test_a_response_outlives_none_that_it_continues() -> None:
    """A conversation that is too long can't be continued; what was kept of it remains whole."""
    recent = ResponseHistory(20_000, 60)
    recent.add("alice", "other", None, _words("x"))
    recent.add("alice", "r0", None, _words("x" * 1000))
    alice = recent.of_key("alice")
    kept = recent._owners["alice"].entries
    length = 1
    while f"r{length - 1}" in kept:
        assert len(alice.items_until(f"r{length - 1}")) == length
        recent.add("alice", f"r{length}", f"r{length - 1}", _words("x" * 1000))
        length += 1
        assert recent._owners["alice"].size <= 20_000
    with pytest.raises(InvalidRequest):
        alice.items_until(f"r{length - 1}")
    assert 5 < len(kept) < 20
    assert "other" not in kept, "the least recently used is dropped first"
    assert all(entry.previous is None or entry.previous in kept for entry in kept.values())


def test_memory_of_all_keys_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_responses, "_MAX_BYTES", 100_000)
    recent = ResponseHistory(50_000, 60)
    for i in range(200):
        recent.add(f"key{i % 20}", f"r{i}", None, _words("x" * 9000))
        assert sum(owner.size for owner in recent._owners.values()) <= 100_000
    assert recent.of_key("key19").items_until("r199")
    recent.add("key19", "large", None, _words("x" * 60_000))
    with pytest.raises(InvalidRequest):
        recent.of_key("key19").items_until("large")


def _ask(client: httpx.Client, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"max_output_tokens": 4, "temperature": 0, **fields}
    return client.post(RESPONSES, json=body, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_continues_by_reference(served: httpx.Client, stream: bool) -> None:
    first = _ask(served, input="One", store=True, stream=stream)
    assert first.status_code == 200, first.text
    whole = json.loads(first.text.strip().rsplit("data: ")[-1])["response"] if stream else first.json()
    assert whole["store"] is False
    (message,) = whole["output"]
    by_id = _ask(served, input="Two", previous_response_id=whole["id"]).json()
    assert by_id["previous_response_id"] == whole["id"]
    by_reference = _ask(
        served,
        input=[
            {"role": "user", "content": "One"},
            {"type": "item_reference", "id": message["id"]},
            {"role": "user", "content": "Two"},
        ],
        store=False,
    ).json()
    written_out = _ask(
        served, input=[{"role": "user", "content": "One"}, message, {"role": "user", "content": "Two"}]
    ).json()
    for answer in (by_id, by_reference):
        assert answer["output"][0]["content"] == written_out["output"][0]["content"]
        assert answer["usage"]["input_tokens"] == written_out["usage"]["input_tokens"]


@pytest.mark.parametrize("reference", ["previous_response_id", "item_reference"])
def test_what_is_referred_to_counts_as_a_body(
    served: httpx.Client, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    add = body_budget._CountedBody.add

    def count(body: body_budget._CountedBody, size: int) -> None:
        counted.append(size)
        add(body, size)

    monkeypatch.setattr(body_budget._CountedBody, "add", count)
    long = {"role": "user", "content": "One " * 50_000, "id": "msg_long"}
    kept = _ask(served, input=[long, {"role": "assistant", "content": "a"}, {"role": "user", "content": "Two"}]).json()
    counted.clear()
    refers = {"previous_response_id": kept["id"]} if reference == "previous_response_id" else {}
    items = [{"role": "user", "content": "Three"}]
    answer = _ask(served, input=items if refers else [{"type": "item_reference", "id": "msg_long"}, *items], **refers)
    assert answer.status_code == 200, answer.text
    assert sum(counted) > 200_000


def test_unknown_references_are_named(served: httpx.Client) -> None:
    unstored = _ask(served, input="One", store=False).json()
    for fields, param in [
        ({"input": "x", "previous_response_id": unstored["id"]}, "previous_response_id"),
        ({"input": "x", "previous_response_id": 5}, "previous_response_id"),
        ({"input": [*_words("x"), {"type": "item_reference", "id": unstored["output"][0]["id"]}]}, "input[1]"),
    ]:
        answer = _ask(served, **fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param


def test_errors_name_the_item_as_it_was_sent(served: httpx.Client) -> None:
    first = _ask(served, input="One").json()
    answer = _ask(
        served,
        previous_response_id=first["id"],
        instructions="Be short.",
        input=[*_words("Two"), {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}],
    )
    assert answer.json()["error"]["param"].startswith("input[1].content[0]")
    answer = _ask(served, previous_response_id=first["id"], input=[{"role": "wizard", "content": "x"}])
    assert answer.json()["error"]["param"] == "input[0].role"
    assert "input[0].role" in answer.json()["error"]["message"]


def test_keys_do_not_share_responses(small_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    alice, bob = (add_key(file, name, KeyLimits()) for name in ("alice", "bob"))
    with serving(small_model, keys_file=file) as (client, _):
        first = _ask(client, alice, input="My PIN is 12.").json()
        assert _ask(client, alice, input="Two", previous_response_id=first["id"]).status_code == 200
        for fields in (
            {"input": "Two", "previous_response_id": first["id"]},
            {"input": [{"type": "item_reference", "id": first["output"][0]["id"]}, *_words("Two")]},
        ):
            assert _ask(client, bob, **fields).status_code == 400


def test_nothing_is_kept_where_the_setting_is_0(small_model: Any) -> None:
    with serving(small_model, response_store_bytes=0) as (client, _):
        first = _ask(client, input="One").json()
        assert _ask(client, input="Two", previous_response_id=first["id"]).status_code == 400


def test_the_openai_client_continues_a_conversation(served: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="small", input="One", max_output_tokens=4, store=True)
        second = client.responses.create(
            model="small", input="Two", max_output_tokens=4, previous_response_id=first.id, store=True
        )
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
