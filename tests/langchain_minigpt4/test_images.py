"""Every form of picture that providers put into messages becomes a handle, and nothing else does."""

import base64
import hashlib
import json
import random
import textwrap
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from drawing import draw, encode
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_minigpt4.images import all_images, extract_images
from PIL import Image

from minigpt4_serve.images import IMAGE_FORMATS

DATA = encode(draw())
B64 = base64.b64encode(DATA).decode()
URL = f"data:image/png;base64,{B64}"
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
    "google, inline_data": ({"inline_data": {"mime_type": "image/png", "data": B64}}, {"base64": B64}),
    "google, inlineData": ({"inlineData": {"mimeType": "image/png", "data": DATA}}, {"base64": B64}),
    "google, file_data": ({"file_data": {"mime_type": "image/png", "file_uri": FAR}}, {"url": FAR}),
    "google, fileData": ({"fileData": {"mimeType": "image/png", "fileUri": FAR}}, {"url": FAR}),
    "standard, URL-safe base64": (
        {"type": "image", "base64": base64.urlsafe_b64encode(DATA).decode().rstrip("=")},
        {"base64": B64},
    ),
    "openai, wrapped": (
        {"type": "image_url", "image_url": {"url": " data:image/png;base64,\n" + base64.encodebytes(DATA).decode()}},
        {"base64": B64},
    ),
    "amazon": ({"image": {"format": "png", "source": {"bytes": DATA}}}, {"base64": B64}),
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
    ],
)
def test_pasted_addresses(pasted: str) -> None:
    (changed,), new = extract_images([HumanMessage(pasted)], {}, max_bytes=10**6)
    assert new == {"image_1": {"base64": B64}}
    assert B64 not in str(changed.content)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ({"type": "image", "source_type": "id", "id": "file-1"}, "send its data"),
        ({"type": "image", "file_id": "file-1"}, "send its data"),
        ({"type": "input_image", "file_id": "file-1"}, "send its data"),
        ({"type": "image_url", "image_url": {}}, "send its data"),
        ({"type": "image", "base64": "A" * 4000, "mime_type": "image/png"}, "more than"),
    ],
)
def test_what_cant_be_kept_says_why(block: dict[str, Any], why: str) -> None:
    changed, new = extract_images([HumanMessage([block])], {}, max_bytes=1000)
    assert "[image_1:" in str(changed[0].content)
    assert why in new["image_1"]["refused"]
    assert why in str(changed[0].content), "no call is wasted"


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
    text = pattern * 100_000
    began = time.thread_time()
    extract_images([HumanMessage(text), HumanMessage("data:image/png;base64," + text)], {}, max_bytes=10**6)
    assert time.thread_time() - began < 2
