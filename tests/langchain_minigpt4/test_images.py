"""Every form of picture that providers put into messages becomes a handle, and nothing else does."""

import base64
import hashlib
import json
import random
import re
import textwrap
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from drawing import draw, encode
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_minigpt4 import ImageHandles
from langchain_minigpt4.images import all_images, extract_images
from langchain_minigpt4.middleware import _merge
from PIL import Image

from minigpt4_serve.images import IMAGE_FORMATS

DATA = encode(draw())
B64 = base64.b64encode(DATA).decode()
URL = f"data:image/png;base64,{B64}"
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()
LINES = base64.encodebytes(DATA).decode()
PERCENT_ENCODED = f"data:image/png;base64,{quote(B64, safe='')}"
FAR = "https://example.com/a.png"

FORMS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "standard": ({"type": "image", "base64": B64, "mime_type": "image/png"}, {"base64": B64}),
    "standard, address": ({"type": "image", "url": FAR}, {"url": FAR}),
    "standard, data address": ({"type": "image", "url": URL}, {"base64": B64}),
    "standard, as a file": ({"type": "file", "base64": B64, "mime_type": "image/png"}, {"base64": B64}),
    "first generation": (
        {"type": "image", "source_type": "base64", "data": B64, "mime_type": "image/png"},
        {"base64": B64},
    ),
    "first generation, address": ({"type": "image", "source_type": "url", "url": FAR}, {"url": FAR}),
    "openai": ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, {"base64": B64}),
    "openai, bare": ({"type": "image_url", "image_url": URL}, {"base64": B64}),
    "openai, address": ({"type": "image_url", "image_url": {"url": FAR}}, {"url": FAR}),
    "openai responses": ({"type": "input_image", "image_url": URL}, {"base64": B64}),
    "anthropic": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        {"base64": B64},
    ),
    "anthropic, address": ({"type": "image", "source": {"type": "url", "url": FAR}}, {"url": FAR}),
    "standard, a data address for base64": ({"type": "image", "base64": URL}, {"base64": B64}),
    "standard, base64 in lines": (
        {"type": "image", "base64": base64.encodebytes(DATA).decode(), "mime_type": "image/png"},
        {"base64": B64},
    ),
    "standard, capitals": ({"type": "file", "base64": B64, "mime_type": "IMAGE/PNG"}, {"base64": B64}),
    "drawn by a model": ({"type": "image_generation_call", "id": "1", "result": B64}, {"base64": B64}),
    "google": ({"type": "media", "mime_type": "image/png", "data": DATA}, {"base64": B64}),
    "amazon": ({"image": {"format": "png", "source": {"bytes": DATA}}}, {"base64": B64}),
    "google, inline": ({"inline_data": {"mime_type": "image/png", "data": B64}}, {"base64": B64}),
    "google, inline in camel case": ({"inlineData": {"mimeType": "image/png", "data": DATA}}, {"base64": B64}),
    "google, address": ({"fileData": {"mimeType": "image/png", "fileUri": FAR}}, {"url": FAR}),
    "mcp, embedded": (
        {"type": "resource", "resource": {"uri": "a://b", "mimeType": "image/png", "blob": B64}},
        {"base64": B64},
    ),
    "openai, file": ({"type": "file", "file": {"filename": "a.png", "file_data": URL}}, {"base64": B64}),
    "openai responses, file": ({"type": "input_file", "file_data": URL}, {"base64": B64}),
    "hugging face": ({"type": "image", "image": URL}, {"base64": B64}),
    "hugging face, address": ({"type": "image", "image": FAR}, {"url": FAR}),
    "ai sdk": ({"type": "image", "image": B64, "mediaType": "image/png"}, {"base64": B64}),
    "url-safe": ({"type": "image", "base64": URL_SAFE, "mime_type": "image/png"}, {"base64": B64}),
    "no padding": ({"type": "image_url", "image_url": {"url": URL.rstrip("=")}}, {"base64": B64}),
    "leading blank": ({"type": "image_url", "image_url": {"url": f" {URL}\n"}}, {"base64": B64}),
    "percent-encoded": ({"type": "image_url", "image_url": {"url": PERCENT_ENCODED}}, {"base64": B64}),
    "mcp": ({"type": "image", "data": B64, "mimeType": "image/png"}, {"base64": B64}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage])
def test_every_form_becomes_a_handle(form: str, kind: Any) -> None:
    block, stored = FORMS[form]
    message = kind([{"type": "text", "text": "before"}, block, "after"], id="m1")
    changed, new = extract_images([message], {}, max_bytes=10**6)
    assert new == {"image_1": stored}
    (after,) = changed
    assert after.id == "m1"
    assert type(after) is kind
    first, second, third = after.content
    assert (first, third) == ({"type": "text", "text": "before"}, "after")
    assert second["text"].startswith("[image_1:")
    assert B64 not in str(after)
    # The original is untouched, and a second look finds nothing.
    assert message.content[1] == block
    assert extract_images(changed, new, max_bytes=10**6) == ([], {})


def test_pictures_inside_other_blocks_and_tools_answers() -> None:
    inner = {"type": "tool_result", "tool_use_id": "1", "content": [FORMS["anthropic"][0]]}
    screen = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}
    others = {"type": "non_standard", "value": FORMS["openai"][0]}
    messages = [
        HumanMessage([inner]),
        HumanMessage([screen]),
        HumanMessage([others]),
        ToolMessage([FORMS["mcp"][0]], tool_call_id="1"),
    ]
    changed, new = extract_images(messages, {}, max_bytes=10**6)
    assert list(new) == ["image_1"], "the same picture has one handle"
    assert len(changed) == 4
    assert B64 not in str(changed)


@pytest.mark.parametrize(
    "content",
    [
        "plain words",
        "an address https://example.com/a.png stays",
        "image_1 is only a word",
        [{"type": "text", "text": "words"}],
        [{"type": "file", "base64": B64, "mime_type": "application/pdf"}],
        [{"type": "audio", "base64": B64, "mime_type": "audio/wav"}],
        [],
    ],
)
def test_everything_else_stays_as_it_is(content: Any) -> None:
    assert extract_images([HumanMessage(content)], {}, max_bytes=10**6) == ([], {})


def test_numbers_go_on_where_they_were() -> None:
    known: Any = {"image_1": {"base64": "old"}, "image_2": {"base64": B64}}
    blocks = [FORMS["openai"][0], FORMS["openai, address"][0]]
    changed, new = extract_images([HumanMessage(blocks)], known, max_bytes=10**6)
    assert new == {"image_3": {"url": FAR}}
    assert "image_2" in str(changed[0].content)
    assert list(all_images([HumanMessage(blocks)], known, max_bytes=10**6)) == ["image_1", "image_2", "image_3"]


def test_a_handle_is_never_given_twice() -> None:
    known: Any = {"image_2": {"base64": "old"}, "image_7": {"base64": "older"}}
    _, new = extract_images([HumanMessage([FORMS["openai"][0]])], known, max_bytes=10**6)
    assert list(new) == ["image_8"], "a developer took some away"
    far = [{"type": "image", "file_id": "a"}, {"type": "image", "file_id": "b"}]
    _, new = extract_images([HumanMessage(far)], {}, max_bytes=10**6)
    assert list(new) == ["image_1", "image_2"], "two pictures that can't be kept are still two"


@pytest.mark.parametrize(
    "pasted",
    [
        f"![a]({URL})",
        f"see {URL.upper()[:22]}{URL[22:]} here",
        f"data:image/png;charset=utf-8;base64,{B64}",
        f"<{URL}>",
        f"Look: data:image/png;base64,{LINES}",
        "Look: data:image/png;base64," + LINES.replace("\n", "\r\n") + "What is it?",
        f"data:image/png;base64,\n{LINES}",
        f"Look: {PERCENT_ENCODED} here",
        f"Look: data:image/png;base64,{URL_SAFE.rstrip('=')}\nWhat is it?",
        f"<img src='data:image/png;base64,{LINES}'>",
    ],
)
def test_pasted_addresses(pasted: str) -> None:
    (changed,), new = extract_images([HumanMessage(pasted)], {}, max_bytes=10**6)
    assert new == {"image_1": {"base64": B64}}
    assert B64 not in str(changed.content)


TOOL_TEXTS = {
    "bare": B64,
    "bare, in lines": LINES,
    "bare, in a sentence": f"The screenshot: {B64} (PNG)",
    "json": json.dumps({"size": [3, 4], "screenshot": B64}),
    "json, in lines": json.dumps({"screenshot": LINES}),
    "json, escaped slashes": json.dumps({"screenshot": B64}).replace("/", "\\/"),
    "json, data address": json.dumps([{"url": URL}]),
    "json, google": json.dumps({"parts": [{"inlineData": {"mimeType": "image/png", "data": B64}}]}),
    "python": str({"screenshot": B64}),
    "untyped address": f"data:;base64,{B64}",
    "octets": f"data:application/octet-stream;base64,{B64}",
}


@pytest.mark.parametrize("name", TOOL_TEXTS)
def test_base64_in_a_tools_text_becomes_a_handle(name: str) -> None:
    (changed,), new = extract_images([ToolMessage(TOOL_TEXTS[name], tool_call_id="1")], {}, max_bytes=10**6)
    assert new == {"image_1": {"base64": B64}}
    assert "[image_1:" in str(changed.content)
    assert not re.search(r"[A-Za-z0-9+/]{30}", str(changed.content))
    if name.startswith("json"):
        json.loads(str(changed.content))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_bare_base64_of_other_formats_is_found(kind: str) -> None:
    data = base64.b64encode(encode(draw(), kind)).decode()
    assert extract_images([ToolMessage(data, tool_call_id="1")], {}, max_bytes=10**6)[1] == {
        "image_1": {"base64": data}
    }


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(b"%PDF-1.7 " + bytes(100)).decode(),
        "Qk" + "A" * 100,  # two letters of BMP and no size
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0",
        "/usr/share/a/very/long/path/of/a/program/that/was/never/installed",
        "iVBORw0KGgo is how PNG begins",
        f"data:application/pdf;base64,{base64.b64encode(b'%PDF-1.7 ' + bytes(100)).decode()}",
    ],
)
def test_other_long_words_stay(text: str) -> None:
    assert extract_images([ToolMessage(text, tool_call_id="1")], {}, max_bytes=10**6) == ([], {})


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ({"type": "image", "source_type": "id", "id": "file-1"}, "send its data"),
        ({"type": "image", "file_id": "file-1"}, "send its data"),
        ({"type": "input_image", "file_id": "file-1"}, "send its data"),
        ({"type": "image_url", "image_url": {}}, "send its data"),
        ({"type": "image", "image": "/home/me/a.png"}, "send its data"),
        ({"type": "image", "base64": "A" * 4000, "mime_type": "image/png"}, "more than"),
    ],
)
def test_what_cant_be_kept_says_why(block: dict[str, Any], why: str) -> None:
    changed, new = extract_images([HumanMessage([block])], {}, max_bytes=1000)
    assert "[image_1:" in str(changed[0].content)
    assert why in new["image_1"]["refused"]
    assert why in str(changed[0].content), "no call is wasted"


def _state(**options: Any) -> list[str]:
    """The handles that are kept of six images, three in a message and three in another."""
    middleware = ImageHandles(**options)
    known: Any = {}
    for first in (0, 3):
        blocks = [
            {"type": "image", "base64": encode_number(first + number), "mime_type": "image/png"} for number in range(3)
        ]
        update = middleware.before_model({"messages": [HumanMessage(blocks, id="1")], "minigpt4_images": known}, None)  # type: ignore[arg-type,typeddict-item]
        assert update is not None
        known = _merge(known, [update["minigpt4_images"]])
    return list(known)


def encode_number(number: int) -> str:
    return base64.b64encode(DATA + bytes([number])).decode()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"max_images": 6}, [1, 2, 3, 4, 5, 6]),
        ({"max_images": 5}, [2, 3, 4, 5, 6]),
        ({"max_images": 2}, [5, 6]),
        ({"max_total_bytes": (len(DATA) + 3) * 4}, [3, 4, 5, 6]),
        ({"max_total_bytes": 10}, [6]),
        ({"max_images": 0}, [6]),
    ],
)
def test_the_oldest_images_are_dropped(options: dict[str, int], kept: list[int]) -> None:
    assert _state(**options) == [f"image_{number}" for number in kept]


WRITINGS: dict[str, Callable[[str, str], str]] = {
    "wrapped": lambda plain, wrapped: f"Look: data:image/png;base64,{wrapped}",
    "wrapped, with other line ends": lambda plain, wrapped: "data:image/png;base64," + wrapped.replace("\n", "\r\n"),
    "wrapped, then text": lambda plain, wrapped: f"data:image/png;base64,{wrapped}What is this thing?",
    "wrapped with its header": lambda plain, wrapped: textwrap.fill(f"data:image/png;base64,{plain}", 76),
    "without padding": lambda plain, wrapped: "data:image/png;base64," + plain.rstrip("="),
    "URL-safe": lambda plain, wrapped: "data:image/png;base64," + plain.replace("+", "-").replace("/", "_"),
    "percent-encoded": lambda plain, wrapped: "data:image/png;base64," + quote(plain, safe=""),
    "after a blank": lambda plain, wrapped: f"data:image/png;base64, {plain}",
    "in markup": lambda plain, wrapped: f"![a](data:image/png;base64,{plain}) and more",
    "of an unknown type": lambda plain, wrapped: f"data:application/octet-stream;base64,{plain}",
    "bare": lambda plain, wrapped: plain,
    "bare in a sentence": lambda plain, wrapped: f"result: {plain} (done)",
    "bare and wrapped": lambda plain, wrapped: f"Here:\n{wrapped}\nThat is all.",
    "in JSON": lambda plain, wrapped: json.dumps({"image": plain, "width": 4}),
    "wrapped in JSON": lambda plain, wrapped: json.dumps({"image": wrapped, "width": 4}),
    "in JSON with escaped slashes": lambda plain, wrapped: json.dumps({"image": plain}).replace("/", "\\/"),
}
NOISE = Image.frombytes("RGB", (40, 40), random.Random(0).randbytes(4800))


@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("extra", [b"", b"\xff", b"\xff\xfe"])
def test_pasted_base64_is_found_however_it_is_written(writing: str, kind: str, extra: bytes) -> None:
    if not any(one.name == kind for one in IMAGE_FORMATS):
        pytest.skip("this build of Pillow doesn't read the format")
    data = encode(NOISE, kind) + extra  # all kinds of padding
    text = WRITINGS[writing](base64.b64encode(data).decode(), base64.encodebytes(data).decode())
    (message,), new = extract_images([ToolMessage(text, tool_call_id="1")], {}, max_bytes=10**6)
    assert [base64.b64decode(image["base64"]) for image in new.values()] == [data]
    assert "[image_1:" in message.content
    assert len(message.content) < 200


@pytest.mark.parametrize(
    "text",
    [
        "a" * 4000,
        "iVBORw0KGgo",
        "/9j/ is how JPEGs begin in base64, and iVBORw0KGgo how PNGs do",
        base64.b64encode(bytes(3000)).decode(),
        base64.b64encode(b"some text " * 300).decode(),
        "data:text/plain;base64," + base64.b64encode(b"some text " * 30).decode(),
        "https://example.com/9j/AAAA",
        hashlib.sha512(b"").hexdigest(),
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert extract_images([HumanMessage(text)], {}, max_bytes=10**6) == ([], {})


@pytest.mark.parametrize(
    "pattern",
    ["data:", "data:;", "data:a;base64,", "iVBORw0KGgo", "AAAA", "%", "=\n", "\\n", "/9j/ ", "A\n", " ", "-_"],
)
def test_pasted_images_are_searched_for_in_linear_time(pattern: str) -> None:
    text = pattern * 20_000  # in quadratic time, these take minutes
    began = time.thread_time()
    extract_images([HumanMessage(text), HumanMessage("data:image/png;base64," + text)], {}, max_bytes=10**6)
    assert time.thread_time() - began < 2
