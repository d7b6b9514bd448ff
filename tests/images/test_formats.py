"""Every supported format, and files with several images in each format that can have them."""

import base64
import io
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from PIL import Image, ImageOps

import minigpt4_serve
from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    ImageLimits,
    decode_image,
    find_format,
    formats,
    image_url_part,
    parse_data_url,
    to_data_url,
    validate_image,
)
from minigpt4_serve.images.validation import open_container

try:
    import pillow_heif
except ImportError:  # the extra heif isn't installed
    pillow_heif = None

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
        if self.name == "HEIC":
            pillow_heif.register_heif_opener()
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
    Sample("TIFF", "TIFF", "image/tiff"),
    Sample("AVIF", "AVIF", "image/avif"),
    Sample("HEIF", "HEIC", "image/heic"),
    Sample("MPO", "JPEG", "image/jpeg", images=2),
    Sample("PNG", "PNG", "image/png", images=2),
    Sample("WEBP", "WEBP", "image/webp", images=2),
    Sample("GIF", "GIF", "image/gif", images=2),
    Sample("TIFF", "TIFF", "image/tiff", images=2),
    Sample("AVIF", "AVIF", "image/avif", images=2),
)
SAMPLES = tuple(sample for sample in SAMPLES if sample.name in {one.name for one in IMAGE_FORMATS})
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s.pillow_format}-{s.images}")

UNKNOWN = {
    "empty": b"",
    "text": b"hello",
    "PDF": b"%PDF-1.7 ...",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
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
    assert set(IMAGE_SUFFIXES) >= {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@each_sample
def test_the_signature_determines_the_format(sample: Sample) -> None:
    found = find_format(sample.encode())
    assert found is not None
    assert (found.name, found.mime_type) == (sample.name, sample.mime_type)


@each_sample
def test_validation_and_decoding_accept_every_format(sample: Sample) -> None:
    data = sample.encode()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == (sample.pillow_format, sample.images)
    valid = validate_image(data, LIMITS)
    assert valid.data == data
    decoded = decode_image(valid.data)
    assert_red(decoded)


def assert_red(image: Image.Image) -> None:
    assert (image.mode, image.size) == ("RGB", (64, 48))
    red, green, blue = image.getpixel((32, 24))  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert blue < 60


@each_sample
def test_data_urls_have_the_actual_media_type(sample: Sample) -> None:
    data = sample.encode()
    url = to_data_url(data)
    assert url == f"data:{sample.mime_type};base64,{base64.b64encode(data).decode()}"


@each_sample
def test_other_servers_get_formats_that_all_support(sample: Sample) -> None:
    data = sample.encode()
    url = image_url_part(data)["image_url"]["url"]
    mime_type = url.partition(";")[0].removeprefix("data:")
    assert mime_type in {"image/png", "image/jpeg", "image/gif", "image/webp"}
    if mime_type == sample.mime_type:
        assert url == to_data_url(data)
    else:
        assert_red(decode_image(parse_data_url(url, LIMITS).data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
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
    with pytest.raises(InvalidImage, match=r"Send a PNG, JPEG, .* or \w+\.$"):
        to_data_url(data)
    with pytest.raises(InvalidImage):
        validate_image(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (UNKNOWN["PDF"], "PDF"),
        (UNKNOWN["SVG"], "SVG"),
        (UNKNOWN["ICO"], "ICO"),
        (UNKNOWN["JPEG 2000"], "JPEG 2000"),
        (b"\0\0\0\x18ftypmp42", "MP4 or MOV"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"PK\3\4\x14\0", "ZIP"),
        (b"\x1f\x8b\x08\0", "GZIP"),
        (b"\xef\xbb\xbf%PDF-1.4", "PDF"),
        (b"\r\n\n %PDF-1.4", "PDF"),
        (b"\n%!PS-Adobe", "PostScript"),
        (b"\xef\xbb\xbf<svg/>", "SVG"),
        (b" \n\t<SVG width='1'>", "SVG"),
        (b"<!-- made by hand -->\n<svg:svg/>", "SVG"),
        (
            b"<?xml version='1.0'?>\n<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN'>\n<!-- a --><!-- b -->\n<svg/>",
            "SVG",
        ),
        ("\ufeff<?xml version='1.0'?><svg/>".encode("utf-16-le"), "SVG"),
        ("\ufeff<svg/>".encode("utf-16-be"), "SVG"),
        (b"<?xml version='1.0'?><rss/>", "SVG or XML"),
        (b"<!--" + b"-" * 5000, "SVG or XML"),
        (b"<!doctype html>\n<title>", "HTML"),
        (b"\n\n<HTML lang='en'>", "HTML"),
        (b"<!-- saved -->\n<!DOCTYPE html>\n<html>", "HTML"),
    ],
)
def test_the_refusal_names_a_known_format(data: bytes, name: str) -> None:
    with pytest.raises(InvalidImage, match=rf"^{name} files can't be read here\. Send a PNG"):
        validate_image(data, LIMITS)


def test_without_its_extra_heic_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "IMAGE_FORMATS", tuple(one for one in IMAGE_FORMATS if one.name != "HEIC"))
    with pytest.raises(InvalidImage, match=r"^HEIC files can't be read here\. Send a PNG"):
        validate_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), LIMITS)


TURNED = [sample for sample in SAMPLES if sample.images == 1 and sample.name not in ("GIF", "BMP")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sample", TURNED, ids=lambda s: s.name)
def test_images_are_turned_upright(sample: Sample, orientation: int) -> None:
    sample.encode()  # registers HEIC
    stored = draw("red", (64, 48))
    stored.paste("black", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    tags: dict[str, Any] = {"exif": exif} if sample.name != "TIFF" else {"tiffinfo": {0x0112: orientation}}
    data = encode(stored, sample.pillow_format, quality=95, **tags)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    upright = decode_image(validate_image(data, LIMITS).data)
    assert upright.size == expected.size
    assert upright.tobytes() == expected.tobytes()


def _exif(kind: int, packed: bytes, order: str = "<", count: int = 1) -> bytes:
    """EXIF data with an orientation of a type."""
    begin = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHI", 0x0112, kind, count) + packed.ljust(4, b"\0")
    return begin + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


@pytest.mark.parametrize(
    ("kind", "packed", "order", "turned"),
    [
        (1, b"\6", "<", True),  # BYTE
        (1, b"\6", ">", True),
        (3, b"\6\0", "<", True),  # SHORT
        (3, b"\0\6", ">", True),
        (4, b"\6\0\0\0", "<", True),  # LONG
        (4, b"\0\0\0\6", ">", True),
        (4, b"\6\0\1\0", "<", False),  # 65,542
        (2, b"6\0", "<", False),  # ASCII
        (5, b"\6\0\0\0", "<", False),  # RATIONAL, an offset
        (7, b"\6", "<", False),  # UNDEFINED
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_may_have_any_integer_type(
    kind: int, packed: bytes, order: str, turned: bool, file_format: str
) -> None:
    data = encode(draw(), file_format, exif=b"Exif\0\0" + _exif(kind, packed, order))
    assert decode_image(validate_image(data, LIMITS).data).size == ((48, 64) if turned else (64, 48))


def _tiff_with(*entries: tuple[int, int, int, int], ahead: bool) -> bytes:
    """A TIFF of 64 × 48 pixels with more entries (tag, type, count, value), ahead of or behind the others."""
    data = encode(draw(), "TIFF")
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    own = data[directory + 2 : directory + 2 + 12 * count]
    added = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    both = added + own if ahead else own + added
    moved = len(data) + len(data) % 2
    directories = struct.pack("<H", count + len(entries)) + both + bytes(4)
    return data[:4] + struct.pack("<I", moved) + data[8:] + bytes(len(data) % 2) + directories


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(
    "entries",
    [
        [(256, 4, 1, 30_000), (257, 4, 1, 30_000)],  # size
        [(256, 3, 1, 1), (257, 3, 1, 1)],
        [(256, 9, 1, 30_000)],  # SLONG: an integer that isn't checked
        [(256, 4, 0, 30_000)],  # no value
        [(259, 3, 1, 34712)],  # JPEG 2000 compression
        [(259, 8, 1, 34712)],
        [(322, 4, 1, 60_000), (323, 4, 1, 60_000)],  # tiles
        [(322, 9, 1, 60_000), (323, 9, 1, 60_000)],
    ],
)
def test_duplicate_tags_of_a_tiff_cannot_hide_values(
    entries: list[tuple[int, int, int, int]], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[int, int]] = []
    open_image = Image.open

    def record(*args: Any, **kwargs: Any) -> Image.Image:
        image = open_image(*args, **kwargs)
        opened.append(image.size)
        return image

    monkeypatch.setattr(Image, "open", record)
    data = _tiff_with(*entries, ahead=ahead)
    try:
        _, container = open_container(data)
        validate_image(data, ImageLimits())
    except InvalidImage:
        assert not opened or opened == [(container.width, container.height)]
        return
    assert opened == [(container.width, container.height)]
    if not ahead and entries[0][0] != 322:
        assert opened == [(64, 48)], "the first entry counts"


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


def test_the_page_offers_all_formats() -> None:
    script = (Path(minigpt4_serve.__file__).parent / "page" / "images.js").read_text()
    accepted = re.search(r'ACCEPTED = "([^"]*)"', script)
    assert accepted is not None
    offered = set(accepted[1].split(","))
    assert {one.mime_type for one in formats.KNOWN_FORMATS} <= offered
    suffixes = {suffix for one in formats.KNOWN_FORMATS for suffix in one.suffixes}
    assert {name for name in offered if name.startswith(".")} <= suffixes
    names = [one.name for one in formats.KNOWN_FORMATS]
    assert f"Choose a {', '.join(names[:-1])} or {names[-1]}." in script
