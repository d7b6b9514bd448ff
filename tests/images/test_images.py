import base64
import contextlib
import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from drawing import draw, encode
from PIL import Image

from minigpt4_serve.errors import InvalidImage, InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import (
    IMAGE_FORMATS,
    ImageLimits,
    decode_base64,
    decode_image,
    parse_data_url,
    validate_image,
)

LIMITS = ImageLimits(max_bytes=200_000, max_pixels=1_000_000)


def _url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG with the header of a decompression bomb and no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + b"\x00\x00\x00\x00IEND\xaeB`\x82"


@pytest.mark.parametrize("declared", ["image/png", "image/whatever", "text/plain", ""])
def test_the_declared_media_type_is_ignored(declared: str) -> None:
    data = encode(draw("red"), "JPEG")
    assert parse_data_url(_url(data, declared), LIMITS).data == data


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (encode(draw(), "PNG")[:20], InvalidImage),
        (b"\xff\xd8\xff" + b"\x00" * 50, InvalidImage),
        (b"BM" + b"\xff" * 100, InvalidImage),
        (_png_of_size(2000, 2000), InvalidImage),
        (_png_of_size(60_000, 60_000), InvalidImage),
        (_png_of_size(0, 5), InvalidImage),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 300_000, PayloadTooLarge),
    ],
)
def test_unusable_images_are_rejected_before_decoding(data: bytes, error: type[MiniGPT4Error]) -> None:
    with pytest.raises(error) as caught:
        validate_image(data, LIMITS)
    assert caught.value.message.endswith(".")
    assert "Pillow" not in caught.value.message
    assert "PIL" not in caught.value.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_images_are_damaged(kind: str) -> None:
    pixels = random.Random(0).randbytes(64 * 64 * 3)
    data = encode(Image.frombytes("RGB", (64, 64), pixels), kind)
    image = validate_image(data[: len(data) // 2], LIMITS) if kind != "WEBP" else None
    with pytest.raises(InvalidImage):
        decode_image(image.data if image else data[: len(data) // 2])


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("https://example.com/a.png", InvalidRequest),
        ("file:///etc/passwd", InvalidRequest),
        ("", InvalidRequest),
        ("data:image/png;base64", InvalidRequest),
        ("data:image/png,rawbytes", InvalidRequest),
        ("data:image/png;base64a,AAAA", InvalidRequest),
        ("data:" + "%41" * 100_000 + ";base64,AAAA", InvalidRequest),
        ("data:image/png;base64," + "%41%42%43%44" * 10, InvalidImage),
        ("data:image/png;name=base64,AAAA", InvalidRequest),
        ('data:image/png;name="a, b;base64,AAAA', InvalidRequest),  # the quote is never closed
        ("data:image/png;base64,***", InvalidImage),
        ("data:image/png;base64,AAAAA", InvalidImage),
        ("data:image/png;base64,AA=A", InvalidImage),
        ("data:image/png;base64,ÄÄÄÄ", InvalidImage),
        ("data:image/png;base64,", InvalidImage),
        ("data:image/png;base64," + "A" * 400_000, PayloadTooLarge),
    ],
)
def test_bad_urls(url: str, error: type[MiniGPT4Error]) -> None:
    with pytest.raises(error) as caught:
        parse_data_url(url, LIMITS, param="messages[0].content[0].image_url")
    assert caught.value.param == "messages[0].content[0].image_url"
    assert "passwd" not in caught.value.message


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90°
    upright = decode_image(encode(image, "PNG", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((19, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_every_kind_of_pixels_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    gray = Image.new("L", (8, 8), 200)
    if mode.startswith("I"):
        image = Image.frombytes("I;16", (8, 8), struct.pack("<64H", *[200 * 257] * 64))
    else:
        image = gray.convert("RGB").convert(mode)
    decoded = decode_image(encode(image, kind))
    assert decoded.mode == "RGB"
    if mode != "1":
        assert abs(decoded.getpixel((4, 4))[0] - 200) <= 4  # a palette has 216 colors


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [draw("red"), draw("blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(file.getvalue()).getpixel((32, 24))[0] > 200


def test_the_digest_identifies_the_bytes() -> None:
    data = encode(draw())
    first = validate_image(data, LIMITS)
    second = validate_image(data + b"\x00", LIMITS)
    assert first.digest == validate_image(data, LIMITS).digest
    assert first.digest != second.digest
    assert len(first.digest) == 64


def _wrapped(data: bytes, line_break: bytes) -> str:
    return base64.encodebytes(data).replace(b"\n", line_break).decode()


@pytest.mark.parametrize(
    "write",
    [
        _url,
        lambda data: "data:image/png;base64," + _wrapped(data, b"\n"),
        lambda data: "data:image/png;base64," + _wrapped(data, b"\r\n"),
        lambda data: "data:image/png;base64," + _wrapped(data, b"\n    "),
        lambda data: "data:image/png;base64," + quote(_wrapped(data, b"\n"), safe=""),
        lambda data: _url(data).rstrip("="),
        lambda data: "data:image/png;base64," + base64.urlsafe_b64encode(data).decode(),
        lambda data: "data:image/png;base64," + base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: "data:image/png;base64," + quote(base64.b64encode(data).decode(), safe=""),
        lambda data: "data:image/png;base64, " + base64.b64encode(data).decode(),
        lambda data: "\n " + _url(data) + " ",
        lambda data: "data:image/png; base64," + base64.b64encode(data).decode(),
        lambda data: "DATA:;BASE64," + base64.b64encode(data).decode(),
        lambda data: "data:image/png;charset=utf-8;base64," + base64.b64encode(data).decode(),
        lambda data: _url(data, "image/png;base64;charset=utf-8").replace(";base64,", ","),
        lambda data: "data:base64," + base64.b64encode(data).decode(),
        lambda data: "data:image/png%3Bbase64," + base64.b64encode(data).decode(),
        lambda data: "data:image%2Fpng%3bBase64," + quote(base64.b64encode(data).decode(), safe=""),
        lambda data: _url(data, 'image/png;name="a,b;base64,c.png"'),
    ],
)
@pytest.mark.parametrize("extra", [b"", b"\xff", b"\xff\xfe"])
def test_base64_is_read_as_many_libraries_write_it(write: Callable[[bytes], str], extra: bytes) -> None:
    data = encode(draw("red")) + b"\xfb\xff\xbf" + extra  # with both special characters, and all kinds of padding
    assert parse_data_url(write(data), LIMITS).data == data


@pytest.mark.parametrize("escape", ["%41", "%2B", "%2f", "%0A", "%%", "A%3D"])
def test_escapes_take_memory_in_proportion(escape: str) -> None:
    text = escape * 300_000
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            decode_base64(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text)


def _photo(**options: Any) -> bytes:
    pixels = random.Random(0).randbytes(64 * 48 * 3)
    return encode(Image.frombytes("RGB", (64, 48), pixels), "JPEG", **options)


@pytest.mark.parametrize("progressive", [False, True])
def test_data_after_the_end_of_a_jpeg_is_ignored(progressive: bool) -> None:
    data = _photo(progressive=progressive)
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x0c\xff\xc0\0\x11\xff\xd8" * 300
    motion_photo = validate_image(data + video, LIMITS)
    assert motion_photo.data == data + video
    assert decode_image(motion_photo.data).tobytes() == decode_image(data).tobytes()


def test_markers_in_metadata_are_no_scans() -> None:
    data = _photo()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2002) + b"\xff\xda\0\x0c" * 500
    assert validate_image(data[:2] + thumbnail + data[2:], LIMITS)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_is_decoded(progressive: bool, lost: int) -> None:
    data = _photo(progressive=progressive)
    assert decode_image(validate_image(data[:-lost], LIMITS).data).tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [6, 40, 800])
def test_a_jpeg_that_lacks_pixels_is_damaged(progressive: bool, lost: int) -> None:
    with pytest.raises(InvalidImage, match="damaged"):
        decode_image(validate_image(_photo(progressive=progressive)[:-lost], LIMITS).data)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_with(*chunks: bytes) -> bytes:
    data = encode(draw("red", (40, 20)))
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encode(draw("red", (40, 20)), "JPEG", exif=b"Exif\0\0" + b"\xa5" * 900), (40, 20)),
        (encode(draw("red", (40, 20)), "WEBP", exif=b"II*\0" + b"\xff" * 900), (40, 20)),
        (_png_with(_chunk(b"eXIf", b"\xa5" * 900)), (40, 20)),
        (_png_with(_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03\0\0\0\x01\0\x06\0\0")), (20, 40)),
        (_png_with(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))), (40, 20)),
        (_png_with(_chunk(b"zTXt", b"Raw profile type exif\0\0" + b"\xa5" * 90)), (40, 20)),
        (_png_with(_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2_000_000)))), (40, 20)),
        (_png_with(_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='8'/>")), (20, 40)),
        (_png_with(_chunk(b"tEXt", b"\0")), (40, 20)),
        (_png_with(_chunk(b"pHYs", b"")), (40, 20)),
    ],
)
def test_metadata_that_cannot_be_read_is_ignored(data: bytes, size: tuple[int, int]) -> None:
    assert decode_image(validate_image(data, LIMITS).data).size == size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exposure_bias_of_minus_one_by_zero_is_ignored(kind: str) -> None:
    zero = struct.pack(">HHII", 0x9204, 10, 1, 44) + bytes(4) + struct.pack(">iI", -1, 0)
    tags = struct.pack(">HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x8769, 4, 1, 38) + bytes(4)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + tags + bytes(38 - 8 - len(tags)) + struct.pack(">H", 1) + zero
    data = encode(draw("red", (40, 20)), kind, exif=exif)
    assert decode_image(validate_image(data, LIMITS).data).size == (20, 40)


@pytest.mark.parametrize("size", [(8160, 6144), (8192, 6144), (6144, 8192), (8064, 6048)])
def test_photos_of_50_megapixel_phones_are_accepted(size: tuple[int, int]) -> None:
    assert validate_image(_png_of_size(*size), ImageLimits())


@pytest.mark.parametrize(
    ("kind", "pixels", "options"),
    [("WEBP", 20, {}), ("JPEG", 32, {"progressive": True, "subsampling": 0}), ("AVIF", 24, {"speed": 10})],
)
def test_memory_for_decoding_is_limited(kind: str, pixels: int, options: dict[str, Any]) -> None:
    if not any(one.name == kind for one in IMAGE_FORMATS):
        pytest.skip("this build of Pillow doesn't read the format")
    data = encode(Image.new("RGB", (1000, pixels)), kind, **options)
    assert validate_image(data, ImageLimits())
    with pytest.raises(InvalidImage, match="too much memory"):
        validate_image(data, ImageLimits(max_decode_bytes=288 * 1024))
