"""Proxies, certificates and keys: what the environment may hold, and which clients it must not break."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fakes.openai_replies import Reply
from fakes.openai_server import OpenAIServer
from langchain_minigpt4 import ChatMiniGPT4, MiniGPT4VisionTool
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.telegram.connection import _make_request
from pydantic import SecretStr

from minigpt4_serve.cli.sources import RemoteModel
from minigpt4_serve.cli.status import fetch
from minigpt4_serve.client import ChatClient, SyncChatClient, VisionClient, server_address, server_key
from minigpt4_serve.client.connection import is_this_machine, make_http_client
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.settings import TINY_MODEL, ServeSettings
from minigpt4_serve.settings_file import validate_settings

QUESTION = [{"role": "user", "content": "Hello"}]
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")

ENVIRONMENTS = {
    "http proxy": {"HTTP_PROXY": "http://127.0.0.1:9"},
    "small letters": {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
    "all": {"ALL_PROXY": "http://127.0.0.1:9"},
    "socks5": {"ALL_PROXY": "socks5://127.0.0.1:9"},
    "socks": {"ALL_PROXY": "socks://127.0.0.1:9/"},
    "no scheme": {"HTTP_PROXY": "127.0.0.1:nine"},
    "no certificates": {"SSL_CERT_FILE": "/none/ca.pem"},
    "no folder of certificates": {"SSL_CERT_DIR": "/none"},
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    page = Reply(body={"model": "m", "engines": []})
    with OpenAIServer(answers=["a disc"] * 9, pages={"/status": page}) as running:
        yield running


def _ask_chat_client(url: str) -> None:
    client = SyncChatClient(url)
    list(client.answer(QUESTION))
    client.close()


def _ask_command_line(url: str) -> None:
    model = RemoteModel(url)
    list(model.answer(QUESTION))
    model.close()


def _ask_vision_client(url: str) -> None:
    data = (TINY_MODEL / "example.png").read_bytes()
    asyncio.run(VisionClient(url).ask("What is it?", [EncodedImage("d", data)]))


def _ask_tool(url: str) -> None:
    folder = TINY_MODEL
    tool = MiniGPT4VisionTool(base_url=url, allowed_folders=[folder])
    assert "a disc" in tool.invoke({"images": [str(folder / "example.png")], "question": "What is it?"})


def _ask_chat_model(url: str) -> None:
    assert "".join(chunk.text for chunk in ChatMiniGPT4(base_url=url).stream("Hello")).strip() == "a disc"


def _ask_chat_model_async(url: str) -> None:
    async def ask() -> str:
        return "".join([chunk.text async for chunk in ChatMiniGPT4(base_url=url).astream("Hello")])

    assert asyncio.run(ask()).strip() == "a disc"


def _ask_status(url: str) -> None:
    fetch(url.removesuffix("/v1"), None)


def _ask_telegram(url: str) -> None:
    async def ask() -> None:
        request = _make_request(url)
        await request.initialize()
        await request.do_request(f"{url}/models", "GET")
        await request.shutdown()

    asyncio.run(ask())


CLIENTS = (
    _ask_command_line,
    _ask_vision_client,
    _ask_tool,
    _ask_chat_model,
    _ask_chat_model_async,
    _ask_status,
    _ask_telegram,
)


@pytest.mark.parametrize(
    ("ask", "environment"),
    [
        *((_ask_chat_client, environment) for environment in ENVIRONMENTS),
        *((ask, environment) for ask in CLIENTS for environment in ("http proxy", "socks", "no certificates")),
    ],
)
def test_a_server_on_this_machine_is_asked_directly(
    ask: Callable[[str], None], environment: str, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENTS[environment].items():
        monkeypatch.setenv(name, value)
    ask(server.url)


@pytest.mark.parametrize("environment", ["socks", "no scheme", "socks5"])
@pytest.mark.parametrize("make", [ChatClient, lambda url: ChatMiniGPT4(base_url=url), _make_request])
def test_a_proxy_that_cannot_be_used_is_one_sentence(
    make: Callable[[str], object], environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENTS[environment].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match="_PROXY") as refused:
        make("http://vision.example/v1")
    assert "127.0.0.1" not in refused.value.message, "it may hold a password"
    monkeypatch.setenv("NO_PROXY", "vision.example")
    make("http://vision.example/v1")


async def test_a_proxy_is_used_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        async with make_http_client(httpx.AsyncClient, "http://vision.example/v1") as client:
            asking = asyncio.create_task(client.get("http://vision.example/v1/models"))
            proxy.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(proxy)
            with connection:
                received = await asyncio.get_running_loop().sock_recv(connection, 100)
            asking.cancel()
    assert received.startswith(b"GET http://vision.example/v1/models ")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("kind", [httpx.Client, openai.DefaultAsyncHttpxClient])
def test_unreadable_certificates_are_one_sentence(
    kind: Any, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    values = ["/none"] if variable == "SSL_CERT_DIR" else ["/none/ca.pem", str(tmp_path / "empty.pem")]
    for value in values:
        monkeypatch.setenv(variable, value)
        with pytest.raises(InvalidRequest, match=variable):
            make_http_client(kind, "https://vision.example/v1")


KEYS = {
    "line break": "sk\n1",
    "carriage return": "sk\r1",
    "letter": "schlüssel",
    "zero": "sk\0",
    "wide space": "sk\u2003a",
    "quotes": "“sk”",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_key_that_cannot_be_sent_is_one_sentence(
    key: str, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = SecretStr(key)
    makers: list[Callable[[], object]] = [
        lambda: ChatClient(server.url, secret),
        lambda: VisionClient(server.url, secret),
        lambda: RemoteModel(server.url, api_key=key),
        lambda: MiniGPT4VisionTool(base_url=server.url, api_key=secret),
        lambda: ChatMiniGPT4(base_url=server.url, api_key=secret),
        lambda: fetch(server.origin, key),
        lambda: validate_settings(ServeSettings, {"api_key": key}, None),
    ]
    if "\0" not in key:
        monkeypatch.setenv("MINIGPT4_API_KEY", key)
        makers += [server_key, lambda: ChatMiniGPT4(base_url=server.url)]
    for make in makers:
        with pytest.raises(InvalidRequest, match="key") as refused:
            make()
        assert key not in str(refused.value)


def test_blanks_around_a_key_are_dropped() -> None:
    with OpenAIServer(key="sesame", answers=["a disc"]) as server:
        client = SyncChatClient(server.url, SecretStr(" sesame\n"))
        list(client.answer(QUESTION))
        client.close()
    assert ServeSettings(api_key=SecretStr(" sesame\n")).api_key == SecretStr("sesame")


@pytest.mark.parametrize(
    "address",
    [
        "http://host:port/v1",
        "http://[::1",
        "http://x:99999/",
        "http:///v1",
        "http://a b/v1",
        "http://\n/",
        "http://:80",
    ],
)
def test_an_address_that_cannot_be_read_is_one_sentence(address: str) -> None:
    with pytest.raises(InvalidRequest, match="should look like"):
        server_address(address)
    with pytest.raises(ValueError, match="must be an address"):
        BotSettings.model_validate({"server": {"base_url": address}})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(
            (host, True)
            for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")
        ),
        *((host, True) for host in ("0.0.0.0", "::", "::ffff:127.0.0.1")),
        *((host, False) for host in ("localhost.example", "128.0.0.1", "::2", "10.0.0.1", "", "127.0.0.1.example")),
    ],
)
def test_hosts_of_this_machine(host: str, expected: bool) -> None:
    assert is_this_machine(host) is expected
