import base64
import io
import struct
import zlib

import pytest
from drawing import draw, encode
from PIL import Image

from minigpt4_serve.errors import InvalidImage, InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import ImageLimits, decode_image, parse_data_url, validate_image

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
    import random

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
        ("data:image/png;base64,***", InvalidImage),
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
