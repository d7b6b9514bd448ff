"""The OpenAPI document is accurate: responses conform to it, and no request made from it gives a 500."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from serving_app import serving, settled

from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.settings import EngineSettings

QUESTION = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "input": "Hello"}

DEMANDS = ("response_format", "text", "min_tokens", "max_tokens", "top_logprobs", "timeout", "beams")


@pytest.fixture(scope="module")
def served(small_model: Any) -> Iterator[tuple[httpx.Client, ChatService]]:
    """A server whose context is so small that no answer takes long."""
    with serving(small_model, engine=EngineSettings(max_running=4, num_blocks=10)) as pair:
        yield pair


def test_no_request_gives_a_500(served: tuple[httpx.Client, ChatService]) -> None:
    client, _ = served
    document = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    asked: Counter[str] = Counter()
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(max_examples=15, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            answer = case.call(timeout=120)
            asked[f"{case.method} {case.path} {answer.status_code}"] += 1
            case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance])
            # With a model and a question that random generation won't find, the other parameters are used.
            for known in ({"model": "small"}, {"model": "small", **QUESTION}):
                if isinstance(case.body, dict):
                    answer = client.post(case.path, json={**case.body, **known})
                    asked[f"{case.method} {case.path} {answer.status_code}"] += 1
                    assert answer.status_code < 500, answer.text

        attack()
    # Both valid and invalid requests were tried.
    assert asked["POST /v1/chat/completions 200"], asked
    assert asked["POST /v1/chat/completions 400"], asked
    assert asked["POST /v1/responses 200"], asked
    assert asked["POST /v1/responses 400"], asked


def test_afterwards_nothing_runs_and_the_server_answers(served: tuple[httpx.Client, ChatService]) -> None:
    client, service = served
    settled(service)
    hello = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=hello).status_code == 200


def test_the_document_has_every_route_and_field(served: tuple[httpx.Client, ChatService]) -> None:
    client, _ = served
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/v1/models", "/health", "/ready"} <= set(paths)
    chat = paths["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "stream", "timeout", "response_format", "seed"} <= set(body["properties"])
    assert "$ref" not in str(body), "a reference would point nowhere"
    for name in ("stop", "messages"):
        schema = body["properties"][name]
        schema = schema["items"]["properties"]["content"] if name == "messages" else schema
        assert {"string", "array"} <= {choice.get("type") for choice in schema["anyOf"]}, name
    asked = paths["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"][
        "input"
    ]
    assert [choice["type"] for choice in asked["anyOf"]] == ["string", "array"]
    assert {"200", "400", "401", "404", "408", "413", "429", "503"} <= set(chat["responses"])
    for path, name in {"/v1/chat/completions": "ChatCompletion", "/v1/responses": "Response"}.items():
        content = paths[path]["post"]["responses"]["200"]["content"]
        assert content["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}
        assert "text/event-stream" in content


@pytest.mark.parametrize("keys", [{}, {"api_key": "sesame"}])
def test_the_document_names_the_ways_to_send_a_key(small_model: Any, keys: dict[str, str]) -> None:
    with serving(small_model, **keys) as (client, _):
        document = client.get("/openapi.json").json()
        assert client.get("/openapi.json").json() == document
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme"), scheme.get("name")) for scheme in schemes.values()} == {
        ("http", "bearer", None),
        ("apiKey", None, "x-api-key"),
    }
    used = [*({name: []} for name in schemes), *([] if keys else [{}])]
    assert document["security"] == used
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/models"]["get"]
