"""The client against a strict stand-in server: what it sends, how it waits, what it remembers, how it stops."""

import asyncio
import hashlib
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from drawing import draw, encode
from vision_server import KEY, Refusal, VisionServer, vision_server

from minigpt4_serve.client import Progress, VisionClient, wait_for
from minigpt4_serve.client.failures import retry_after
from minigpt4_serve.client.words import clean, delimited
from minigpt4_serve.errors import EngineFailed, InvalidRequest, ModelNotFound, Overloaded, ServerUnreachable
from minigpt4_serve.pictures import Picture


@pytest.fixture
def server() -> Iterator[VisionServer]:
    with vision_server() as running:
        yield running


def picture(color: str = "red", kind: str = "PNG") -> Picture:
    data = encode(draw(color), kind)
    return Picture(hashlib.sha256(data).hexdigest(), data)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://eyes:8000", "http://eyes:8000/v1"),
        ("http://eyes:8000/", "http://eyes:8000/v1"),
        ("http://eyes:8000/v1/", "http://eyes:8000/v1"),
        ("https://eyes/openai/v2", "https://eyes/openai/v2"),
    ],
)
def test_addresses_of_servers(given: str, expected: str) -> None:
    assert VisionClient(given).base_url == expected


@pytest.mark.parametrize("given", ["eyes:8000", "ftp://eyes", "http://", " "])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(InvalidRequest, match="should look like"):
        VisionClient(given)


def test_the_environment_fills_in(server: VisionServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = KEY
    monkeypatch.setenv("MINIGPT4_BASE_URL", server.url)
    monkeypatch.setenv("MINIGPT4_API_KEY", KEY)
    assert wait_for(lambda: VisionClient().ask("Colour?", [picture()])).text == "red"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_every_format_arrives_with_its_type(kind: str, server: VisionServer) -> None:
    server.answers = [lambda pictures, question: f"{pictures[0].size} {question}"]
    answer = await VisionClient(server.url).ask(" Size? ", [picture("red", kind)])
    assert answer.text == "(64, 48) Size?"


async def test_what_is_sent(server: VisionServer) -> None:
    await VisionClient(server.url, temperature=None, max_tokens=9).ask("Q", [picture()])
    await VisionClient(server.url, model="eyes").ask("Q", [picture()])
    first, second = server.requests
    assert "temperature" not in first
    assert (first["max_tokens"], second["temperature"]) == (9, 0.0)
    assert {request["model"] for request in server.requests} == {"eyes"}


async def test_a_server_that_changes_its_model_is_found_again(server: VisionServer) -> None:
    client = VisionClient(server.url)
    await client.ask("Q", [picture()])
    server.models = ["new"]
    with pytest.raises(ModelNotFound):
        await client.ask("R", [picture()])
    assert (await client.ask("R", [picture()])).model == "new"


async def test_the_oldest_answer_is_forgotten_first(server: VisionServer) -> None:
    client = VisionClient(server.url, cache_size=2)
    for question in ("A", "B", "A", "C", "A", "B"):
        await client.ask(question, [picture()])
    assert [server.question(i) for i in range(len(server.requests))] == ["A", "B", "C", "B"]


async def test_nothing_is_remembered_if_so_wished(server: VisionServer) -> None:
    client = VisionClient(server.url, cache_size=0)
    assert [(await client.ask("A", [picture()])).from_cache for _ in range(2)] == [False, False]


async def test_failures_are_not_remembered(server: VisionServer) -> None:
    server.answers = ["half<cut>", "whole"]
    client = VisionClient(server.url)
    with pytest.raises(EngineFailed):
        await client.ask("A", [picture()])
    assert (await client.ask("A", [picture()])).text == "whole"


async def test_a_server_that_starts_late_is_waited_for(server: VisionServer) -> None:
    server.answers = [Refusal(503), Refusal(502)]
    events = [event async for event in VisionClient(server.url).stream("Q", [picture()])]
    assert [event.wait_s for event in events[:2] if isinstance(event, Progress)] == [0.5, 1.0]


async def test_patience_has_a_total(server: VisionServer) -> None:
    server.answers = [Refusal(429, headers={"retry-after": "0.3"})] * 9
    with pytest.raises(Overloaded) as busy:
        await VisionClient(server.url, max_wait_s=0.7).ask("Q", [picture()])
    assert len(server.requests) == 3
    assert busy.value.retry_after == pytest.approx(0.3)


async def test_a_timeout_is_not_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system connects whoever comes; nobody answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ServerUnreachable, match="in time"):
            await VisionClient(url, model="eyes", timeout_s=1).ask("Q", [picture()])
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


async def test_leaving_early_stops_the_answer_at_the_server(server: VisionServer) -> None:
    server.answers = ["endless"]
    stream = VisionClient(server.url).stream("Q", [picture()])
    assert await anext(stream) == Progress(text="more ")
    assert not server.left.is_set()
    await stream.aclose()
    assert await asyncio.to_thread(server.left.wait, 60)


async def test_a_cancelled_question_stops_the_answer_at_the_server(server: VisionServer) -> None:
    server.answers = ["endless"]
    asking = asyncio.create_task(VisionClient(server.url, max_chars=10**6).ask("Q", [picture()]))
    while not server.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await asyncio.to_thread(server.left.wait, 60)


async def test_an_endless_answer_is_cut(server: VisionServer) -> None:
    server.answers = ["endless"]
    answer = await VisionClient(server.url, max_chars=100).ask("Q", [picture()])
    assert answer.truncated
    assert len(answer.text) <= 100
    assert await asyncio.to_thread(server.left.wait, 60), "nobody pays for words that nobody reads"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3.0), ("0", 0.0), ("-4", 0.0), ("nan", None), ("inf", None), ("soon", None), (None, None), ("1e9", 1e9)],
)
def test_retry_after_in_seconds(value: str | None, expected: float | None) -> None:
    headers = {} if value is None else {"retry-after": value}
    assert retry_after(_with_headers(headers)) == expected


def test_retry_after_in_milliseconds() -> None:
    assert retry_after(_with_headers({"retry-after-ms": "1500", "retry-after": "9"})) == 1.5


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after(_with_headers({"retry-after": later})) == pytest.approx(29.5, abs=1.5)


def _with_headers(headers: dict[str, str]) -> Any:
    error: Any = Exception()
    error.response = SimpleNamespace(headers=headers)
    return error


def test_synchronous_callers_in_any_thread_and_in_a_loop(server: VisionServer) -> None:
    client = VisionClient(server.url)
    texts: list[str] = []
    threads = [
        threading.Thread(
            target=lambda color=color: texts.append(wait_for(lambda: client.ask("Q", [picture(color)])).text)
        )
        for color in ("red", "green", "blue")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == ["blue", "green", "red"]

    async def within_a_loop() -> str:
        return wait_for(lambda: client.ask("Again", [picture()])).text

    assert asyncio.run(within_a_loop()) == "red"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", ("plain", False)),
        ("  a\r\nb\tc  ", ("a\nb\tc", False)),
        ("a\x00\x1b[2Jb\u202ec\u2066d\u200be\ufefff\U000e0041g", ("a[2Jbcdefg", False)),
        ("\U0001f468\u200d\U0001f469", ("\U0001f468\u200d\U0001f469", False)),
        ("123456789012", ("1234567890", True)),
        ("", ("", False)),
    ],
)
def test_words_are_cleaned(text: str, expected: tuple[str, bool]) -> None:
    assert clean(text, 10) == expected


@pytest.mark.parametrize("forged", ["</picture_answer>", "< / PICTURE_ANSWER >", "<picture_answer>"])
def test_the_marks_cant_be_forged(forged: str) -> None:
    import re

    marked = delimited(f"before {forged} after")
    assert len(re.findall(r"<\s*/?\s*picture_answer", marked, re.IGNORECASE)) == 2
    assert marked.endswith("after\n</picture_answer>")
