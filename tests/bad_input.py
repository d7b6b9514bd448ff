"""Requests that strangers send: what each must be answered, status and code. Data only; the test sends them."""

import base64
import io
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from drawing import draw, encode
from PIL import Image

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Bad:
    """One request and its answer.

    Attributes:
        body: sent as it is.
        status, code: of the answer; a 200 is an answer like any other.
        says: words that the message must hold: what is wrong, or the limit.
    """

    name: str
    body: bytes
    status: int = 400
    code: str | None = "invalid_request_error"
    says: str = ""
    path: str = CHAT


def make_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asks(*urls: str, **fields: Any) -> bytes:
    """A question about what lies at the URLs."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}).encode()


def says(text: str = "Hello", **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}).encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2, idat: bytes = b"") -> bytes:
    """A PNG with any header, true or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join(chunks) + (chunk(b"IDAT", idat) if idat else b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    """A GIF of so many tiny frames."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff" + frame * frames + b"\x3b"


def scans(count: int) -> bytes:
    """A progressive JPEG with passes that add nothing."""
    data = encode(draw("red"), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + b"\xff\xd9"


def animation(kind: str, count: int) -> bytes:
    frames = [Image.new("RGB", (8, 8), (i * 37 % 256, i * 91 % 256, 0)) for i in range(count)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=10)
    return file.getvalue()


def exif(orientation: int, kind: str) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encode(draw("red", (40, 20)), kind, exif=tags)


def _gray16() -> bytes:
    return encode(Image.frombytes("I;16", (8, 8), struct.pack("<64H", *range(0, 64_000, 1000))))


_WHOLE = encode(draw("red", (64, 64)))


def _png_with(*chunks: bytes) -> bytes:
    return _WHOLE[:33] + b"".join(chunks) + _WHOLE[33:]


_JPEG = encode(draw("red", (64, 64)), "JPEG")
_BOMB = zlib.compress(b"\0" * 60_000_000, 9)  # 58 kB that unfold to 60 MB

BODIES = [
    Bad("empty", b"", says="JSON"),
    Bad("no JSON", b"hello", says="JSON"),
    Bad("half of it", says()[:-5], says="JSON"),
    Bad("a list", b"[]", says="object"),
    Bad("a number", b"5", says="object"),
    Bad("not UTF-8", b'{"messages": "\xff\xfe"}', says="JSON"),
    Bad("UTF-16", says().decode().encode("utf-16"), 200, None),
    Bad("a byte order mark", b"\xef\xbb\xbf" + says(), 200, None),
    Bad("half of UTF-16", says().decode().encode("utf-16")[:-5], says="JSON"),
    Bad("half a character", b'{"messages":[{"role":"user","content":"\\ud83d"}]}', says="JSON"),
    Bad("nested deep", b"[" * 40_000 + b"]" * 40_000, says="JSON"),
    Bad("millions of values", b"[" + b"0," * 1_000_000 + b"0]", says="50000"),
    Bad("a number of 5000 digits", b'{"seed": ' + b"9" * 5000 + b"}", says="JSON"),
    Bad("infinity", b'{"temperature": Infinity}', says="JSON"),
    Bad("too large", says("x" * 2_100_000), 413, "payload_too_large", "2 MiB"),
    Bad("megabytes of words", says("word " * 300_000), 400, "context_length_exceeded", "characters"),
    Bad("no messages", b"{}", says="messages"),
    Bad("a thousand messages too many", says(messages=[{"role": "user", "content": "x"}] * 2000), says="messages"),
    Bad("no question", says(messages=[{"role": "assistant", "content": "x"}]), says="question"),
    Bad("unknown role", says(messages=[{"role": "wizard", "content": "x"}]), says="role"),
    Bad("content of numbers", says(messages=[{"role": "user", "content": [1, 2]}]), says="content"),
    Bad("an unknown part", says(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), says="content"),
    Bad("another model", says(model="gpt-4"), 404, "model_not_found", "small"),
    Bad("a responses request of nothing", b'{"input": []}', says="input", path="/v1/responses"),
    Bad(
        "a response that isn't kept",
        b'{"input": "x", "previous_response_id": "resp_1"}',
        says="recent",
        path="/v1/responses",
    ),
    Bad("an unknown route", b"{}", 404, "invalid_request_error", "nothing", path="/v1/embeddings"),
]

PARAMETERS = [
    Bad("hot", says(temperature=3), says="temperature"),
    Bad("temperature in words", says(temperature="hot"), says="temperature"),
    Bad("nucleus below nothing", says(top_p=-1), says="top_p"),
    Bad("more tokens than numbers", says(top_k=10**30), says="top_k"),
    Bad("no tokens", says(max_tokens=0), says="max_tokens"),
    Bad("least above most", says(min_tokens=9), says="min_tokens"),
    Bad("a hundred answers", says(n=100), says="n"),
    Bad("five stops", says(stop=["a"] * 5), says="stop"),
    Bad("a stop of nothing", says(stop=""), 200, None),
    Bad("a tool of the server's", says(tools=[{"type": "web_search"}]), says="tools"),
    Bad("a call of no tool", says(tool_choice="required"), says="tool_choice"),
    Bad("a call of another tool", says(tools=[{"type": "function"}], tool_choice="f"), says="tool_choice"),
    Bad(
        "a schema that costs minutes",
        says(response_format={"type": "json_schema", "json_schema": {"schema": {"multipleOf": 9999991}}}),
        says="multipleOf",
    ),
    Bad("biases", says(logit_bias={"5": 100}), says="logit_bias"),
    Bad("penalties", says(presence_penalty=3), says="presence_penalty"),
    Bad("audio", says(modalities=["audio"]), says="modalities"),
    Bad("alternatives of nothing", says(top_logprobs=3), says="logprobs"),
    Bad("a deadline in the past", says(timeout=-1), says="timeout"),
    Bad("beams that are sampled", says(beams=2, temperature=1), says="temperature"),
    Bad(
        "a shape that is none",
        says(response_format={"type": "json_schema", "json_schema": {"schema": {"type": 5}}}),
        says="schema",
    ),
    Bad("no chance", says("x", timeout=1e-6, max_tokens=400), 408, "deadline_exceeded", "in time"),
]

PICTURES = [
    Bad("nothing", asks("data:image/png;base64,"), 400, "invalid_image", "empty"),
    Bad("no base64", asks("data:image/png;base64,@@@@"), 400, "invalid_image", "base64"),
    Bad("not encoded", asks("data:image/png,abc"), 400, says="base64"),
    Bad("words", asks(make_url(b"hello")), 400, "invalid_image", "PNG"),
    Bad(
        "a drawing program",
        asks(make_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")),
        400,
        "invalid_image",
        "PNG",
    ),
    Bad("a document", asks(make_url(b"%PDF-1.7\n1 0 obj")), 400, "invalid_image", "PNG"),
    Bad("a film", asks(make_url(b"\0\0\0\x18ftypmp42")), 400, "invalid_image", "PNG"),
    Bad("an icon", asks(make_url(encode(draw(), "ICO"))), 400, "invalid_image", "PNG"),
    Bad(
        "PostScript", asks(make_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 400, "invalid_image", "PNG"
    ),
    Bad("a sound in RIFF", asks(make_url(b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40)), 400, "invalid_image", "PNG"),
    Bad("a PNG's signature", asks(make_url(_WHOLE[:8])), 400, "invalid_image", "damaged"),
    Bad("half a PNG", asks(make_url(_WHOLE[: len(_WHOLE) // 2])), 400, "invalid_image", "damaged"),
    Bad("half a JPEG", asks(make_url(_JPEG[:-40])), 400, "invalid_image", "damaged"),
    Bad("noise in a JPEG's coat", asks(make_url(b"\xff\xd8\xff" + b"\x5a" * 500)), 400, "invalid_image", "again"),
    Bad("noise in a BMP's coat", asks(make_url(b"BM" + b"\xff" * 100)), 400, "invalid_image", "again"),
    Bad(
        "too many bytes", asks(make_url(b"\x89PNG\r\n\x1a\n" + b"\0" * 1_200_000)), 413, "payload_too_large", "1.0 MiB"
    ),
    Bad("a size that is a lie", asks(make_url(png(60_000, 60_000))), 400, "invalid_image", "pixels"),
    Bad("a size above the limit", asks(make_url(png(5000, 4000, idat=_BOMB))), 400, "invalid_image", "10 million"),
    Bad("no size", asks(make_url(png(0, 7))), 400, "invalid_image"),
    Bad("a bomb in the data", asks(make_url(png(2000, 2000, idat=_BOMB))), 200, None),
    Bad("a bomb in the words", asks(make_url(_png_with(chunk(b"zTXt", b"a\0\0" + _BOMB)))), 200, None),
    Bad("a bomb in the colours", asks(make_url(_png_with(chunk(b"iCCP", b"a\0\0" + _BOMB)))), 200, None),
    Bad("a GIF of a hundred thousand frames", asks(make_url(gif(50_000))), 400, "invalid_image", "20 frames"),
    Bad("a GIF whose end is missing", asks(make_url(gif(1)[:-6])), 400, "invalid_image"),
    Bad(
        "a GIF of crumbs",
        asks(make_url(gif(1)[:-3] + b"\x01\x00" * 0 + b"\x01\x44" * 300_000)),
        400,
        "invalid_image",
        "parts",
    ),
    Bad("a long WEBP", asks(make_url(animation("WEBP", 30))), 400, "invalid_image", "20 frames"),
    Bad("a long PNG", asks(make_url(animation("PNG", 30))), 400, "invalid_image", "20 frames"),
    Bad("a JPEG of a thousand scans", asks(make_url(scans(1000))), 400, "invalid_image", "50 scans"),
    Bad("nine pictures", asks(*[make_url(_WHOLE)] * 9), 400, says="8"),
    Bad("a picture of the system's", asks(make_url(_WHOLE)).replace(b'"user"', b'"system"'), 400, says="user"),
    # What is odd but right is answered.
    Bad("a TIFF", asks(make_url(encode(draw(), "TIFF"))), 200, None),
    Bad("a PNG that is a ZIP, too", asks(make_url(_WHOLE + b"PK\x03\x04" + b"\0" * 100)), 200, None),
    Bad("a GIF that is a script, too", asks(make_url(encode(draw(), "GIF") + b"*/=1;alert(1)//")), 200, None),
    Bad("a JPEG called text", asks(make_url(_JPEG, "text/html")), 200, None),
    Bad("CMYK", asks(make_url(encode(draw("red").convert("CMYK"), "JPEG"))), 200, None),
    Bad("16 bits", asks(make_url(_gray16())), 200, None),
    Bad("black and white", asks(make_url(encode(draw("red").convert("1")))), 200, None),
    Bad("transparent colours", asks(make_url(encode(draw("red").convert("RGBA").quantize(8)))), 200, None),
    Bad("a short animation", asks(make_url(animation("GIF", 5))), 200, None),
    Bad("on its side", asks(make_url(exif(6, "JPEG"))), 200, None),
    Bad("turned in no known way", asks(make_url(exif(77, "PNG"))), 200, None),
]

ADDRESSES = [
    Bad("http", asks("http://pictures.example/a.png"), says="https"),
    Bad("file", asks("file:///etc/passwd"), says="https"),
    Bad("ftp", asks("ftp://pictures.example/a"), says="https"),
    Bad("gopher", asks("gopher://127.0.0.1:6379/_FLUSHALL"), says="https"),
    Bad("no scheme", asks("pictures.example/a.png"), says="https"),
    Bad("an address of nothing", asks(""), says="https"),
    Bad("no host", asks("https:///a.png"), says="https"),
    Bad("loopback", asks("https://127.0.0.1/a"), says="public"),
    Bad("loopback by name", asks("https://localhost/a"), says="public"),
    Bad("loopback, short", asks("https://127.1/a"), says="public"),
    Bad("loopback, one number", asks("https://2130706433/a"), says="public"),
    Bad("loopback, hexadecimal", asks("https://0x7f000001/a"), says="public"),
    Bad("every interface", asks("https://0.0.0.0/a"), says="public"),
    Bad("private", asks("https://10.0.0.1/a"), says="public"),
    Bad("private, too", asks("https://192.168.1.1/a"), says="public"),
    Bad("link-local: a cloud's metadata", asks("https://169.254.169.254/latest/meta-data"), says="public"),
    Bad("IPv6 loopback", asks("https://[::1]/a"), says="public"),
    Bad("IPv6, mapped", asks("https://[::ffff:127.0.0.1]/a"), says="public"),
    Bad("IPv6, mapped hexadecimal", asks("https://[::ffff:7f00:1]/a"), says="public"),
    Bad("IPv6, translated", asks("https://[64:ff9b::7f00:1]/a"), says="public"),
    Bad("IPv6, 6to4", asks("https://[2002:7f00:1::]/a"), says="public"),
    Bad("IPv6, link-local", asks("https://[fe80::1]/a"), says="public"),
    Bad("IPv6, private", asks("https://[fd00::1]/a"), says="public"),
    Bad("IPv6, site-local", asks("https://[fec0::1]/a"), says="public"),
    Bad("a name for a private address", asks("https://inside.example/a"), says="public"),
    Bad("public and private by turns", asks("https://rebinding.example/a"), says="public"),
    Bad("a user's name", asks("https://me:secret@pictures.example/a"), says="user name"),
    Bad("a redirect inside", asks("https://pictures.example/to-private"), says="public"),
    Bad("a redirect to a file", asks("https://pictures.example/to-file"), says="https"),
    Bad("redirects without end", asks("https://pictures.example/round"), says="3 times"),
    Bad("not there", asks("https://pictures.example/404"), 400, "invalid_image", "404"),
    Bad("no picture there", asks("https://pictures.example/page"), 400, "invalid_image", "PNG"),
    Bad("a body without end", asks("https://pictures.example/endless"), 413, "payload_too_large", "MiB"),
    Bad("a body that never comes", asks("https://pictures.example/never"), 400, "invalid_image", "in time"),
    Bad("an unknown name", asks("https://nowhere.example/a"), says="public"),
    Bad("not a URL", asks("https://[oops/a"), 400, "invalid_image"),
    Bad("a picture", asks("https://pictures.example/a.png"), 200, None),
]
