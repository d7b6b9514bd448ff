"""The table of ``minigpt4 serve --status``."""

import io
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.openai_replies import Reply
from fakes.openai_server import OpenAIServer
from rich.console import Console

from minigpt4_serve.cli.status import fetch, follow, render
from minigpt4_serve.errors import AuthenticationFailed, ServerUnreachable


def _engine(name: str, **counts: int) -> dict[str, Any]:
    nothing = dict.fromkeys(
        (
            *("running", "waiting", "blocks_held", "requests", "prefill_tokens", "cached_tokens"),
            *("generated_tokens", "image_decodes", "image_hits"),
        ),
        0,
    )
    return {**nothing, "blocks_total": 100, **counts, "name": name}


def _text(*args: Any) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(render(*args))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rates_are_differences_of_two_responses() -> None:
    before = {"model": "m", "at": 10.0, "engines": [_engine("a", generated_tokens=100), _engine("b")]}
    engines = [
        _engine("a", running=3, generated_tokens=300, requests=4, blocks_held=25, image_hits=3, image_decodes=1),
        _engine("b", waiting=2, generated_tokens=50, cached_tokens=30, prefill_tokens=10),
    ]
    lines = _text({"model": "m", "at": 12.0, "engines": engines}, before).splitlines()
    row = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in lines if "│" in line
    }
    assert row["a"] == ["3", "0", "25%", "100.0", "2.0", "…", "75%"]
    assert row["b"] == ["0", "2", "0%", "25.0", "0.0", "75%", "…"]
    assert row["all"] == ["3", "2", "12%", "125.0", "2.0", "75%", "75%"]


def test_a_new_engine_has_no_rates() -> None:
    before = {"model": "m", "at": 10.0, "engines": [_engine("old")]}
    shown = _text({"model": "m", "at": 12.0, "engines": [_engine("new")]}, before)
    assert "…" in shown
    assert "1 engine\n" in re.sub(" +\n", "\n", shown)
    assert "0 engines" in _text({"model": "m", "at": 12.0, "engines": []}, None)


@pytest.fixture
def server() -> Iterator[str]:
    page = Reply(body={"model": "m", "engines": [_engine("a", running=7)]})
    with OpenAIServer(key="sesame", pages={"/status": page}) as running:
        yield running.origin


def test_the_table_is_printed_once_without_a_terminal(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    follow(server, "sesame")
    assert " 7 " in capsys.readouterr().out


def test_failures_are_clear_errors(server: str) -> None:
    with pytest.raises(AuthenticationFailed, match="MINIGPT4_API_KEY"):
        fetch(server, "other")
    with pytest.raises(ServerUnreachable, match="minigpt4 serve"):
        fetch("http://127.0.0.1:9", None)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"null",
        b"7",
        b'{"status": "ok"}',
        b'{"model": "m", "engines": 1}',
        b'{"model": "m", "engines": [{"name": "a"}]}',
        b'{"model": "m", "engines": ["a"]}',
    ],
)
def test_the_response_of_another_server_is_a_clear_error(body: bytes) -> None:
    with OpenAIServer(pages={"/status": Reply(body=body)}) as other, pytest.raises(ServerUnreachable) as failed:
        fetch(other.origin, None)
    assert "isn't a minigpt4 server" in failed.value.message


def test_a_server_that_speaks_no_http_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"SSH-2.0\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(ServerUnreachable, match="isn't a minigpt4 server"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}", None)
