"""Who gets in: keys on every route, limits in the answers, and a server without keys that answers this machine only."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_app import few_steps, serving

from minigpt4_serve.errors import InvalidRequest, RateLimited
from minigpt4_serve.server.http.auth import QuotaReservation
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits, add_key, revoke_key
from minigpt4_serve.server.keys.quotas import LocalQuotas, QuotaStore
from minigpt4_serve.settings import EngineSettings, read_serve_settings

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


Keyed = tuple[httpx.Client, Path, ChatService]


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keyed(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A server with keys, their file and its service."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    add_key(file, "first", KeyLimits())
    with serving(small_model, keys_file=file, engine=EngineSettings(max_running=4)) as (client, service):
        yield client, file, service


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic eDp5", "mg4_1_2", "Bearer é"])
def test_without_a_key_nothing_but_health(keyed: Keyed, authorization: str | None) -> None:
    client, *_ = keyed
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    for method, path in (
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("OPTIONS", CHAT),
        ("GET", "/health/../docs"),
        ("GET", f"{client.base_url}//health"),
    ):
        answer = client.request(method, path, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, (method, path)
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/", "/preview", "/page/main.js"):
        assert client.get(path).status_code == 200


def test_a_refused_request_is_not_read(keyed: Keyed) -> None:
    read: list[int] = []

    async def receive() -> dict[str, Any]:
        read.append(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    service = keyed[2]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
    asyncio.run(create_app(service)(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 401
    assert read == []
    asyncio.run(create_app(service)({"type": "websocket", "path": "/health", "headers": []}, receive, send))  # type: ignore[arg-type]
    assert sent[-1] == {"type": "websocket.close", "code": 1008}


def test_keys_come_and_go_while_the_server_runs(keyed: Keyed) -> None:
    client, file, _ = keyed
    key = add_key(file, "guest", KeyLimits())

    def until(status: int) -> None:
        for _ in range(600):
            if client.get("/v1/models", headers=_bearer(key)).status_code == status:
                return
            time.sleep(0.1)
        raise AssertionError("the change was not seen")

    until(200)
    assert client.post(CHAT, json=HELLO, headers=_bearer(key)).status_code == 200
    revoke_key(file, "guest")
    until(401)


def test_limits_are_reported_and_kept(small_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "guest", KeyLimits(requests_per_minute=3, images_per_day=1))
    other = add_key(file, "other", KeyLimits())
    with serving(small_model, keys_file=file) as (client, _):
        answers = [client.post(CHAT, json=HELLO, headers=_bearer(key)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-images"] == "1"
        refused = answers[-1]
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        message = refused.json()["error"]["message"]
        assert re.fullmatch(r"This key may send 3 requests per minute; try again in \d+ seconds?\.", message)
        free = client.post(CHAT, json=HELLO, headers=_bearer(other))
        assert free.status_code == 200
        assert not [name for name in free.headers if name.startswith("x-ratelimit")]
        assert client.get("/v1/models", headers=_bearer(key)).status_code == 200, "looking costs nothing"


async def test_a_long_wait_for_a_quota_is_given_in_hours() -> None:
    limits = KeyLimits(images_per_day=0)
    key = ApiKey(id="1", name="guest", sha256="0" * 64, created=datetime.now(UTC), limits=limits)
    reservation = QuotaReservation(key, LocalQuotas(QuotaStore(clock=lambda: 86400.0 * 20_000)))
    await reservation.reserve()
    with pytest.raises(RateLimited, match="0 are left; try again in 24 hours") as refused:
        await reservation.consume(1)
    assert refused.value.retry_after == 86400


def test_a_stream_is_in_progress_until_its_end_or_the_clients(small_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "guest", KeyLimits(concurrent_requests=1))
    long = {**HELLO, "max_tokens": 400, "min_tokens": 300, "temperature": 0, "stream": True}
    with serving(small_model, keys_file=file) as (client, service):
        with few_steps(service), client.stream("POST", CHAT, json=long, headers=_bearer(key)) as stream:
            pieces = stream.iter_text()  # kept: an iterator that is dropped closes the stream
            next(pieces)
            refused = client.post(CHAT, json=HELLO, headers=_bearer(key))
            assert refused.status_code == 429
            assert "in progress" in refused.json()["error"]["message"]
        for _ in range(100):
            if client.post(CHAT, json=HELLO, headers=_bearer(key)).status_code == 200:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the slot is still taken")


@pytest.mark.parametrize(
    ("client_address", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "127.0.0.1", 200),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.1", "evil.example", 401),
        ("127.0.0.1", "127.0.0.1.evil.example:8000", 401),
        ("127.0.0.1", "", 401),
        ("192.168.1.7", "localhost", 401),
        ("8.8.8.8", "192.168.1.2:8000", 401),
    ],
)
async def test_an_open_server_answers_this_machine_by_its_own_names(
    open_app: Any, client_address: str, host: str, status: int
) -> None:
    transport = httpx.ASGITransport(app=open_app, client=(client_address, 4000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/v1/models", headers={"host": host})
        assert answer.status_code == status
        assert (await client.get("/health", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://127.0.0.1:7860", 200),
        ("http://[::1]:3000", 200),
        ("https://evil.example", 401),
        ("https://localhost.evil.example", 401),
        ("https://127.0.0.1@evil.example", 401),
        ("null", 401),
    ],
)
async def test_an_open_server_answers_no_page_from_elsewhere(open_app: Any, origin: str, status: int) -> None:
    transport = httpx.ASGITransport(app=open_app, client=("127.0.0.1", 4000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        # What a browser sends without asking first, for a page that doesn't want to read the answer.
        simple = {"origin": origin, "content-type": "text/plain"}
        answer = await client.post(CHAT, content=json.dumps(HELLO), headers=simple)
        assert answer.status_code == status


@pytest.fixture(scope="module")
def open_app(small_model: Any) -> Iterator[Any]:
    with serving(small_model) as (_, service):
        yield create_app(service)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", ""])
def test_no_other_machine_is_let_in_without_a_key(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIGPT4_API_KEY", "MINIGPT4_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "serve.yaml"
    config.write_text(f"host: '{host}'\n")
    for file, given in ((None, {"host": host}), (config, {})):
        with pytest.raises(InvalidRequest, match="API key"):
            read_serve_settings(file, given)
    monkeypatch.setenv("MINIGPT4_KEYS_FILE", "keys.json")
    settings = read_serve_settings(config, {})
    assert settings.keys_file == Path.cwd() / "keys.json"
