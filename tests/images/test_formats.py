"""Every supported format, and files with several images in each format that can have them."""

import base64
import io
import warnings
from dataclasses import dataclass

import pytest
from drawing import draw, encode
from PIL import Image

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    ImageLimits,
    decode_image,
    find_format,
    image_url_part,
    to_data_url,
    validate_image,
)

LIMITS = ImageLimits(max_frames=3)


@dataclass(frozen=True)
class Sample:
    """An encoded red disc; in formats with several images the others are blue.

    Attributes:
        pillow_format: the format that Pillow writes.
        name: the row of ``IMAGE_FORMATS`` that it belongs to.
        images: number of images in the file.
    """

    pillow_format: str
    name: str
    mime_type: str
    images: int = 1

    def encode(self) -> bytes:
        if self.images == 1:
            return encode(draw("red"), self.pillow_format)
        others = [draw("blue")] * (self.images - 1)
        return encode(draw("red"), self.pillow_format, save_all=True, append_images=others)


SAMPLES = (
    Sample("PNG", "PNG", "image/png"),
    Sample("JPEG", "JPEG", "image/jpeg"),
    Sample("WEBP", "WEBP", "image/webp"),
    Sample("GIF", "GIF", "image/gif"),
    Sample("BMP", "BMP", "image/bmp"),
    Sample("MPO", "JPEG", "image/jpeg", images=2),
    Sample("PNG", "PNG", "image/png", images=2),
    Sample("WEBP", "WEBP", "image/webp", images=2),
    Sample("GIF", "GIF", "image/gif", images=2),
)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s.pillow_format}-{s.images}")

UNKNOWN = {
    "empty": b"",
    "text": b"hello",
    "PDF": b"%PDF-1.7 ...",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "TIFF": encode(draw(), "TIFF"),
    "ICO": encode(draw(), "ICO"),
    "JPEG 2000": encode(draw(), "JPEG2000"),
    "audio in RIFF": b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40,
    "RIFF without a type": b"RIFF" + b"\0" * 40,
    "start of a PNG signature": b"\x89PNG",
    "GIF of another version": b"GIF88a" + b"\0" * 40,
}


def test_samples_cover_the_table() -> None:
    assert {sample.name for sample in SAMPLES} == {one.name for one in IMAGE_FORMATS}
    assert {sample.mime_type for sample in SAMPLES} == {one.mime_type for one in IMAGE_FORMATS}
    assert set(IMAGE_SUFFIXES) == {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


@each_sample
def test_the_signature_determines_the_format(sample: Sample) -> None:
    found = find_format(sample.encode())
    assert found is not None
    assert (found.name, found.mime_type) == (sample.name, sample.mime_type)
    assert Image.MIME[found.name] == found.mime_type


@each_sample
def test_validation_and_decoding_accept_every_format(sample: Sample) -> None:
    data = sample.encode()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == (sample.pillow_format, sample.images)
    valid = validate_image(data, LIMITS)
    assert valid.data == data
    decoded = decode_image(valid.data)
    assert (decoded.mode, decoded.size) == ("RGB", (64, 48))
    red, green, blue = decoded.getpixel((32, 24))  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert blue < 60


@each_sample
def test_data_urls_have_the_actual_media_type(sample: Sample) -> None:
    data = sample.encode()
    url = to_data_url(data)
    assert url == f"data:{sample.mime_type};base64,{base64.b64encode(data).decode()}"
    assert image_url_part(data) == {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("kind", ["MPO", "PNG", "WEBP", "GIF"])
def test_the_number_of_images_is_limited(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (i * 60, 0, 0)) for i in range(4)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert validate_image(data, ImageLimits(max_frames=4)).data == data
    with pytest.raises(InvalidImage, match="more than 3 frames"):
        validate_image(data, LIMITS)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_formats_are_rejected(name: str) -> None:
    data = UNKNOWN[name]
    assert find_format(data) is None
    with pytest.raises(InvalidImage, match=r"Send a PNG, JPEG, WEBP, GIF or BMP\.$"):
        to_data_url(data)
    with pytest.raises(InvalidImage):
        validate_image(data, LIMITS)


@each_sample
@pytest.mark.parametrize("damage", ["truncated", "only the signature", "random"])
def test_damaged_files_never_show_messages_of_pillow(sample: Sample, damage: str) -> None:
    data = sample.encode()
    if damage == "truncated":
        data = data[: len(data) // 3]
    elif damage == "only the signature":
        data = data[:16]
    else:
        data = data[:16] + b"\xa5" * 500
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(InvalidImage) as caught:
            decode_image(validate_image(data, LIMITS).data)
    assert caught.value.message.startswith("The picture")
    assert caught.value.message.endswith((".", "retry."))
    assert shown == []


def test_a_jpeg_with_damaged_mpo_data_is_read_without_warnings() -> None:
    data = Sample("MPO", "JPEG", "image/jpeg", images=2).encode()
    at = data.index(b"MPF\0")
    damaged = data[: at + 12] + b"\xff" * 20 + data[at + 32 :]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(damaged)) as image:
            image.load()
        assert shown != []
        shown.clear()
        assert decode_image(validate_image(damaged, LIMITS).data).size == (64, 48)
    assert shown == []
