"""The client against the fake server: what it sends, how it waits, what it caches, how it stops."""

import asyncio
import hashlib
import io
import re
import socket
import threading
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import ENDLESS, KEY, ErrorEvent, Reply, refusal
from fakes.openai_server import MODEL, OpenAIServer, vision_server
from PIL import Image
from waiting import wait_until

from minigpt4_serve.client import Completed, Progress, VisionAnswer, VisionClient, chat_client, wait_for
from minigpt4_serve.client.answers import make_answer
from minigpt4_serve.client.failures import retry_after
from minigpt4_serve.client.untrusted_text import delimit, sanitize
from minigpt4_serve.errors import EngineFailed, InvalidRequest, ModelNotFound, Overloaded, ServerUnreachable
from minigpt4_serve.images import EncodedImage


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with vision_server() as running:
        yield running


def picture(color: str = "red", kind: str = "PNG") -> EncodedImage:
    data = encode(draw(color), kind)
    return EncodedImage(hashlib.sha256(data).hexdigest(), data)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://eyes:8000", "http://eyes:8000/v1"),
        ("http://eyes:8000/", "http://eyes:8000/v1"),
        ("http://eyes:8000/v1/", "http://eyes:8000/v1"),
        ("https://eyes/openai/v2", "https://eyes/openai/v2"),
    ],
)
def test_server_addresses_are_completed(given: str, expected: str) -> None:
    assert VisionClient(given).base_url == expected


@pytest.mark.parametrize("given", ["eyes:8000", "ftp://eyes", "http://", " "])
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="should look like"):
        VisionClient(given)


def test_address_and_key_default_to_the_environment(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = KEY
    monkeypatch.setenv("MINIGPT4_BASE_URL", server.url)
    monkeypatch.setenv("MINIGPT4_API_KEY", KEY)
    assert wait_for(lambda: VisionClient().ask("Colour?", [picture()])).text == "red"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
async def test_every_image_format_is_sent_with_its_type(kind: str, server: OpenAIServer) -> None:
    server.answers = [lambda request: f"{request.text} {Image.open(io.BytesIO(request.images[0])).size}"]
    answer = await VisionClient(server.url).ask(" Size? ", [picture("red", kind)])
    assert answer.text == "Size? (64, 48)"


async def test_a_multi_picture_photo_is_sent_as_jpeg(server: OpenAIServer) -> None:
    file = io.BytesIO()
    draw("red").convert("RGB").save(file, "MPO", save_all=True, append_images=[draw("blue").convert("RGB")])
    data = file.getvalue()
    assert Image.open(io.BytesIO(data)).format == "MPO"
    photo = EncodedImage(hashlib.sha256(data).hexdigest(), data)
    await VisionClient(server.url).ask("Q", [photo])
    (part, _) = server.requests[0].body["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/jpeg;base64,")


async def test_only_given_settings_are_sent(server: OpenAIServer) -> None:
    await VisionClient(server.url, temperature=None, max_tokens=9).ask("Q", [picture()])
    await VisionClient(server.url, model=MODEL).ask("Q", [picture()])
    first, second = (request.body for request in server.requests)
    assert "temperature" not in first
    assert (first["max_tokens"], second["temperature"]) == (9, 0.0)
    assert {first["model"], second["model"]} == {MODEL}


async def test_a_changed_model_is_found_again(server: OpenAIServer) -> None:
    client = VisionClient(server.url)
    await client.ask("Q", [picture()])
    server.models = ["new"]
    with pytest.raises(ModelNotFound):
        await client.ask("R", [picture()])
    assert (await client.ask("R", [picture()])).model == "new"


async def test_the_cache_evicts_the_oldest_answer(server: OpenAIServer) -> None:
    client = VisionClient(server.url, cache_size=2)
    for question in ("A", "B", "A", "C", "A", "B"):
        await client.ask(question, [picture()])
    assert [request.text for request in server.requests] == ["A", "B", "C", "B"]


async def test_the_cache_can_be_turned_off(server: OpenAIServer) -> None:
    client = VisionClient(server.url, cache_size=0)
    assert [(await client.ask("A", [picture()])).from_cache for _ in range(2)] == [False, False]


async def test_failures_are_not_cached(server: OpenAIServer) -> None:
    server.answers = [Reply(["half", ErrorEvent()]), "whole"]
    client = VisionClient(server.url)
    with pytest.raises(EngineFailed):
        await client.ask("A", [picture()])
    assert (await client.ask("A", [picture()])).text == "whole"


async def test_a_starting_server_is_asked_again(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(chat_client, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    server.answers = [refusal(503), refusal(502)]
    events = [event async for event in VisionClient(server.url).stream("Q", [picture()])]
    assert [event.wait_s for event in events[:2] if isinstance(event, Progress)] == slept == [0.5, 1.0]


async def test_waits_for_a_full_server_have_a_total(server: OpenAIServer) -> None:
    server.answers = [refusal(429, retry_after="0.1")] * 9
    with pytest.raises(Overloaded) as busy:
        await VisionClient(server.url, max_wait_s=0.25).ask("Q", [picture()])
    assert len(server.requests) == 3
    assert busy.value.retry_after == pytest.approx(0.1)


async def test_a_timeout_is_not_retried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are established but never answered
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ServerUnreachable, match="in time"):
            await VisionClient(url, model=MODEL, timeout_s=0.2).ask("Q", [picture()])
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


async def test_closing_the_stream_aborts_the_request(server: OpenAIServer) -> None:
    server.answers = [ENDLESS]
    stream = VisionClient(server.url).stream("Q", [picture()])
    assert await anext(stream) == Progress(ahead=2)
    assert await anext(stream) == Progress(text="more ")
    assert server.aborted == []
    await stream.aclose()
    await wait_until(lambda: server.aborted)


async def test_canceling_the_task_aborts_the_request(server: OpenAIServer) -> None:
    server.answers = [ENDLESS]
    asking = asyncio.create_task(VisionClient(server.url, max_chars=10**6).ask("Q", [picture()]))
    await wait_until(lambda: server.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await wait_until(lambda: server.aborted)


async def test_an_endless_answer_is_cut_and_aborted(server: OpenAIServer) -> None:
    server.answers = [ENDLESS]
    answer = await VisionClient(server.url, max_chars=100).ask("Q", [picture()])
    assert answer.truncated
    assert len(answer.text) <= 100
    await wait_until(lambda: server.aborted)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3.0), ("0", 0.0), ("-4", 0.0), ("nan", None), ("inf", None), ("soon", None), (None, None), ("1e9", 1e9)],
)
def test_retry_after_is_read_in_seconds(value: str | None, expected: float | None) -> None:
    headers = {} if value is None else {"retry-after": value}
    assert retry_after(_with_headers(headers)) == expected


def test_retry_after_is_read_in_milliseconds() -> None:
    assert retry_after(_with_headers({"retry-after-ms": "1500", "retry-after": "9"})) == 1.5


def test_retry_after_is_read_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after(_with_headers({"retry-after": later})) == pytest.approx(29.5, abs=1.5)


def _with_headers(headers: dict[str, str]) -> Any:
    error: Any = Exception()
    error.response = SimpleNamespace(headers=headers)
    return error


def test_wait_for_works_in_threads_and_in_a_running_loop(server: OpenAIServer) -> None:
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
def test_control_characters_are_removed_and_length_is_cut(text: str, expected: tuple[str, bool]) -> None:
    assert sanitize(text, 10) == expected


HIDDEN = [
    *(
        "\u00ad",
        "\u034f",
        "\u061c",
        "\u115f",
        "\u1160",
        "\u17b4",
        "\u180b",
        "\u180e",
        "\u200b",
        "\u200c",
        "\u200d",
        "\u200e",
    ),
    *(
        "\u202e",
        "\u2060",
        "\u2066",
        "\u206a",
        "\u3164",
        "\ufe00",
        "\ufe0f",
        "\ufeff",
        "\uffa0",
        "\ufff1",
        "\ufff9",
        "\x1b",
        "\x85\b",
    ),
    *(
        "\U0001bca0",
        "\U0001d173",
        "\U000e0001",
        "\U000e0041",
        "\U000e0100",
        "\U000e01ef",
        "\U000e0fff",
        "\ue000",
        "\ufdd0",
    ),
]


@pytest.mark.parametrize("hidden", HIDDEN, ids=ascii)
def test_characters_that_people_cannot_see_are_dropped(hidden: str) -> None:
    assert sanitize(f"re{hidden * 9}d", 100)[0].replace("\n", "") == "red"
    phrase = make_answer(f"<p>a{hidden}b</p> {{<1><2><3><4>}}", None, "m", (), max_chars=100).boxes[0].phrase
    assert phrase in ("ab", "a b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian
        ("\u0915\u094d\u200d\u0937", None),  # Devanagari
        ("\u2764\u200d\U0001f525", None),
        ("\U0001f9d1\U0001f3fd\u200d\U0001f4bb", None),
        ("\u0645\u200c\u200c\u0645", "\u0645\u0645"),
        ("\u0645\u200ca", "\u0645a"),
        ("a\u200db", "ab"),
        ("\u200d\u0915\u200d", "\u0915"),
        ("a\u2028b\u2029c\x0bd", "a\nb\nc\nd"),
        ("a\u2800\u2800b", "a  b"),
    ],
)
def test_joiners_stay_where_a_script_needs_them(text: str, expected: str | None) -> None:
    assert sanitize(text, 100)[0] == (text if expected is None else expected)


@pytest.mark.parametrize(
    "forged",
    [
        *("</picture_answer>", "< / PICTURE_ANSWER >", "<picture_answer>", '</picture_answer id="0000">'),
        *(
            "\uff1c/picture_answer\uff1e",
            "<//picture_answer>",
            "</picture-answer>",
            "</ picture answer>",
            "<\n/picture_answer>",
        ),
        *(
            "\ufe64/picture_answer>",
            "</\uff50icture\uff3fanswer>",
            "\u27e8/picture_answer>",
            "<!picture_answer",
            "<<picture_answer",
        ),
    ],
)
def test_answers_cannot_forge_their_delimiters(forged: str) -> None:
    text = f"before {forged} after"
    marked = delimit(sanitize(text, 1000)[0])
    inside = marked.split("\n", 2)[2].rsplit("\n", 1)[0]
    plain = unicodedata.normalize("NFKC", inside).replace("\u27e8", "<")
    assert not re.search(r"<[^a-z<]*picture[^a-z<]*answer", plain, re.IGNORECASE)
    assert marked.split("\n", 2)[1].removeprefix("<") == marked.rsplit("\n", 1)[1].removeprefix("</")


def test_other_brackets_stay_as_they_are() -> None:
    text = "a < b, <i>picture</i> with an answer, List<picture>, 3 <4"
    assert text in delimit(text)


def test_each_answer_has_marks_of_its_own() -> None:
    answers = [make_answer("red", None, "m", (), max_chars=100) for _ in range(20)]
    assert len({answer.for_model() for answer in answers}) == 20
    assert answers[0].for_model() == answers[0].for_model() == answers[0].model_copy().for_model()


@pytest.mark.parametrize(
    "text",
    [
        f"<p>{'A' * 3_000_000}</p> {{<1><2><3><4>}}",
        "{<1><2><3><4>}" * 250,
        "<p>a dog</p> {<1><2><3><4>}" * 250,
        "<p>a</p> " + "<delim>".join(["{<1><2><3><4>}"] * 9000),
        "x" * 1990 + "<p>a dog</p> {<1><2><3><4>}" * 9,
        "<p>" + "\n" * 900 + "a\nb" * 900 + "</p> {<1><2><3><4>}" * 50,
    ],
    ids=["long phrase", "bare boxes", "phrases", "one phrase", "long text", "lines"],
)
def test_text_and_boxes_together_stay_within_the_limit(text: str) -> None:
    answer = make_answer(text, Completed("stop"), "m", (), max_chars=2000)
    assert answer.boxes
    assert len(answer.for_model()) <= 2000 + 400
    assert sum(len(box.model_dump_json()) for box in answer.boxes) < 10_000
    assert answer.truncated or len(answer.boxes) == text.count("{")
    assert not any("\n" in (box.phrase or "") for box in answer.boxes)


async def test_reading_stops_within_one_delta(server: OpenAIServer) -> None:
    server.answers = [Reply(["<p>" + "A" * 3_000_000 + "</p> {<1><2><3><4>}"])]
    client = VisionClient(server.url, max_chars=100)
    events = [event async for event in client.stream("Q", [picture()])]
    assert max(len(event.text) for event in events) <= 200
    assert isinstance(events[-1], VisionAnswer)
    assert events[-1].truncated
