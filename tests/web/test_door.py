"""Who comes in, and what the headers keep out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.web import PageSettings, listen
from minigpt4_serve.web.door import Door

PASSWORD = "open sesame, ü"


@asynccontextmanager
async def _door(password: str | None) -> AsyncIterator[httpx.AsyncClient]:
    async def inside(_: object) -> PlainTextResponse:
        return PlainTextResponse("inside")

    app = Starlette(routes=[Route("/{path:path}", inside, methods=["GET", "POST"])])
    transport = httpx.ASGITransport(Door(app, SecretStr(password) if password else None))
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
        yield client


async def test_without_a_password_everybody_comes_in_and_nothing_else() -> None:
    async with _door(None) as client:
        answer = await client.get("/")
    assert answer.text == "inside"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-src 'none'" in policy
    assert "http" not in policy  # no other address
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    ["upload", "file=/etc/passwd", "proxy=x", "vibe-edit/", "info", "run-history/records", "deep_link"],
)
async def test_gradios_other_routes_are_closed(path: str) -> None:
    async with _door(None) as client:
        assert (await client.post(f"/gradio_api/{path}")).status_code == 404
        assert (await client.get("/gradio_api/queue/data")).text == "inside"


@pytest.mark.parametrize("path", ["/config", "/pictures/x", "/gradio_api/queue/join", "/assets/x.js", "/enter"])
async def test_nothing_is_shown_without_the_password(path: str) -> None:
    async with _door(PASSWORD) as client:
        answer = await client.get(path)
        assert answer.status_code == 401
        assert "inside" not in answer.text
        form = await client.get("/")
        assert form.status_code == 401
        assert 'type="password"' in form.text


async def test_the_password_opens() -> None:
    async with _door(PASSWORD) as client:
        entered = await client.post("/enter", data={"password": PASSWORD})
        assert entered.status_code == 303
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert "SameSite=strict" in entered.headers["set-cookie"]
        assert PASSWORD not in entered.headers["set-cookie"]
        assert (await client.get("/config")).text == "inside"


@pytest.mark.parametrize("body", [b"", b"password=wrong", b"password=", b"\xff\xfe", b"password=" + b"x" * 3000])
async def test_another_word_does_not(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.web.door._PAUSE_S", 0.01)
    async with _door(PASSWORD) as client:
        answer = await client.post("/enter", content=body)
        assert answer.status_code == 401
        assert "That is not the password." in answer.text
        assert (await client.get("/config")).status_code == 401
        assert (await client.post("/enter", content=b"x" * 5000)).status_code == 413
        client.cookies.set("minigpt4_page", "guess")
        assert (await client.get("/config")).status_code == 401


async def test_guesses_beside_a_wrong_one_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_: float) -> None:
        paused.set()
        await go_on.wait()

    monkeypatch.setattr("minigpt4_serve.web.door.asyncio", SimpleNamespace(Lock=asyncio.Lock, sleep=pause))
    async with _door(PASSWORD) as client:

        async def enter(word: str) -> httpx.Response:
            return await client.post("/enter", data={"password": word})

        first = asyncio.create_task(enter("wrong"))
        await paused.wait()
        others = await asyncio.gather(*(enter(f"wrong {n}") for n in range(5)), enter(PASSWORD))
        assert {other.status_code for other in others} == {429}
        assert {other.headers["retry-after"] for other in others} == {"1"}
        assert "set-cookie" not in others[-1].headers
        assert "Try again" in others[-1].text
        go_on.set()
        assert (await first).status_code == 401
        assert (await enter(PASSWORD)).status_code == 303


def test_the_network_needs_a_password() -> None:
    with pytest.raises(InvalidRequest, match="MINIGPT4_WEB_PASSWORD"):
        PageSettings(server_url="http://127.0.0.1:8000", host="0.0.0.0")
    PageSettings(server_url="http://127.0.0.1:8000", host="0.0.0.0", password=SecretStr("x"))
    PageSettings(server_url="http://127.0.0.1:8000", host="localhost")


def test_a_taken_port_is_one_sentence() -> None:
    with listen(PageSettings(server_url="", port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"port {port}"):
            listen(PageSettings(server_url="", port=port))
