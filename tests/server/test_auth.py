"""Who gets in: keys on every route, limits in the answers, and a server without keys that answers this machine only."""

import asyncio
import base64
import copy
import json
import re
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from drawing import draw, encode
from pydantic import SecretStr
from serving_app import few_steps, serving
from starlette.types import Message

from minigpt4_serve.errors import EngineFailed, InvalidRequest, MiniGPT4Error, Overloaded, RateLimited
from minigpt4_serve.protocol import Delta
from minigpt4_serve.server.http.auth import QuotaReservation
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits, add_key, revoke_key
from minigpt4_serve.server.keys.quotas import LocalQuotas, QuotaStore
from minigpt4_serve.settings import EngineSettings, ServeSettings, read_serve_settings

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
        ("GET", "/status"),
        ("GET", "/nothing"),
        ("OPTIONS", CHAT),
        ("POST", "/docs"),
        ("HEAD", "/v1/models"),
        ("GET", "/health/../status"),
        ("GET", f"{client.base_url}//health"),
    ):
        answer = client.request(method, path, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, (method, path)
        assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/", "/preview", "/page/main.js", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_a_key_may_come_in_either_header(small_model: Any) -> None:
    table: list[tuple[dict[str, str], int]] = [
        ({"x-api-key": "sesame"}, 200),
        ({"X-API-Key": "sesame"}, 200),
        ({"authorization": "Bearer none", "x-api-key": "sesame"}, 200),
        ({"authorization": "Bearer sesame", "x-api-key": "none"}, 200),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "Bearer sesame"}, 401),
        ({"x-api-key": "none"}, 401),
    ]
    with serving(small_model, api_key="sesame") as (client, _):
        for headers, status in table:
            assert client.get("/v1/models", headers=headers).status_code == status, headers


def test_the_docs_load_nothing_from_other_servers(keyed: Keyed) -> None:
    client, *_ = keyed
    page = client.get("/docs").text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) >= 3
    for file in files:
        assert file.startswith("/docs/files/")
        assert client.get(file).status_code == 200


async def test_files_of_the_docs_come_from_memory_in_parts(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, service = keyed
    app = create_app(service)
    parts: list[bytes] = []

    async def no_thread(*_: object, **__: object) -> None:
        raise AssertionError("a thread reads a file")

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        parts.append(message.get("body", b""))

    monkeypatch.setattr(anyio.to_thread, "run_sync", no_thread)
    host = [(b"host", b"localhost")]
    path = "/docs/files/swagger-ui-bundle.js"
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": host, "app": app}
    await app({**scope, "client": ("127.0.0.1", 1), "root_path": "", "http_version": "1.1"}, receive, send)
    assert sum(map(len, parts)) > 10**6
    assert max(map(len, parts)) <= 2**16


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


@pytest.mark.parametrize(
    ("status", "handed_over", "counted"),
    [
        (200, True, 2),
        (400, False, 0),  # refused before an image was decoded
        (408, False, 0),
        (413, False, 0),
        (400, True, 2),  # a damaged image is decoded up to the damage
        (408, True, 2),
        (0, True, 2),  # the client disconnected
        (429, True, 0),  # a full queue refuses before it decodes
        (500, False, 0),
        (503, False, 0),
        (500, True, 2),  # an engine that failed may have decoded them
        (503, True, 2),
    ],
)
async def test_images_that_were_decoded_count(status: int, handed_over: bool, counted: int) -> None:
    key = ApiKey(id="1", name="guest", sha256="0" * 64, created=datetime.now(UTC), limits=KeyLimits(images_per_day=5))
    quotas = LocalQuotas()
    reservation = QuotaReservation(key, quotas)
    await reservation.reserve()
    await reservation.consume(2)
    if handed_over:
        reservation.keep_images()
    reservation.release(status)
    following = QuotaReservation(key, quotas)
    await following.reserve()
    assert following.headers["x-ratelimit-remaining-images"] == str(5 - counted)


def _with_image(data: bytes, **fields: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}], **fields}


RED = encode(draw("red"))
OUTCOMES: dict[str, tuple[dict[str, Any], Exception | None, int, int]] = {
    # request, what the engine raises, status, images that count
    "an answer": (_with_image(RED, max_tokens=2), None, 200, 1),
    "damaged header": (_with_image(RED[:20]), None, 400, 0),
    "damaged pixels": (_with_image(RED[:-30]), None, 400, 1),
    "not an image": (_with_image(b"hello"), None, 400, 0),
    "wrong value": (_with_image(RED, temperature="hot"), None, 400, 0),
    "a schema that is refused": (
        _with_image(RED, response_format={"type": "json_schema", "json_schema": {}}),
        None,
        400,
        0,
    ),
    "a wrong model": (_with_image(RED, model="other"), None, 404, 0),
    "full queue": (_with_image(RED), Overloaded.queue_full(1.0), 429, 0),
    "engine lost": (_with_image(RED), EngineFailed("lost"), 503, 1),
    "an engine's error": (_with_image(RED), MiniGPT4Error("failed"), 500, 1),
    "unexpected error": (_with_image(RED), ZeroDivisionError(), 500, 1),
    "streamed, engine lost": (_with_image(RED, stream=True), EngineFailed("lost"), 503, 1),
    "streamed, unexpected error": (_with_image(RED, stream=True), ZeroDivisionError(), 500, 1),
}


@pytest.fixture(scope="module")
def outcome_keys(keyed: Keyed) -> dict[str, str]:
    """A key with five images a day for each outcome."""
    client, file, _ = keyed
    keys = {outcome: add_key(file, outcome, KeyLimits(images_per_day=5)) for outcome in OUTCOMES}
    *_, last = keys.values()
    while client.get("/v1/models", headers=_bearer(last)).status_code != 200:
        time.sleep(0.1)
    return keys


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_images_count_once_an_engine_has_them(
    keyed: Keyed, outcome_keys: dict[str, str], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _, service = keyed
    asked, raised, status, counted = OUTCOMES[outcome]
    key = outcome_keys[outcome]

    async def fail(*_: Any, **__: Any) -> AsyncGenerator[Delta]:
        assert raised is not None
        raise raised
        yield

    with monkeypatch.context() as patched:
        if raised is not None:
            patched.setattr(service.engine, "generate", fail)
        answer = client.post(CHAT, json=asked, headers=_bearer(key))
        assert answer.status_code == status, answer.text
    following = client.post(CHAT, json=HELLO, headers=_bearer(key))
    assert following.headers["x-ratelimit-remaining-images"] == str(5 - counted)


def test_a_deadline_does_not_refund_images(small_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "guest", KeyLimits(images_per_day=2))
    url = "data:image/png;base64," + base64.b64encode(encode(draw("red"))).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 400, "min_tokens": 400, "timeout": 0.5}
    with serving(small_model, keys_file=file) as (client, service), few_steps(service):
        answers = [client.post(CHAT, json=asked, headers=_bearer(key)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [408, 408, 429]


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
        ("127.0.0.1", "LOCALHOST:8000", 200),
        ("127.0.0.1", "LocalHost", 200),
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
        ("http://LOCALHOST:8000", 200),
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


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
ALLOWED = "https://chat.example"


@pytest.mark.parametrize(
    ("origins", "key", "origin", "allowed"),
    [
        ((), "k", ALLOWED, False),
        ((ALLOWED,), "k", ALLOWED, True),
        ((ALLOWED,), None, ALLOWED, True),
        ((ALLOWED,), "k", "https://other.example", False),
        ((ALLOWED,), None, "https://other.example", False),
        ((ALLOWED,), None, "null", False),
        (("*",), "k", "https://other.example", True),
    ],
)
def test_pages_of_named_origins_may_use_the_server(
    keyed: Keyed, origins: tuple[str, ...], key: str | None, origin: str, allowed: bool
) -> None:
    settings = ServeSettings(cors_origins=origins, api_key=SecretStr(key) if key else None, model_name="small")
    service = copy.copy(keyed[2])
    service.settings = settings
    sent = {"origin": origin, **(_bearer(key) if key else {})}

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app=create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            preflight = await client.options(CHAT, headers={"origin": origin, **PREFLIGHT})
            return preflight, await client.get("/v1/models", headers=sent)

    preflight, listed = asyncio.run(ask())
    answers = (preflight, listed)
    assert all(
        answer.headers.get("access-control-allow-origin") in ((origin, "*") if allowed else (None,))
        for answer in answers
    )
    assert (preflight.status_code == 200) is allowed
    assert listed.status_code == (200 if allowed or key else 401)
