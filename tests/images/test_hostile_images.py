"""Small files that cost much: each must be answered, with an image or an InvalidImage, in little time and memory."""

import contextlib
import io
import resource
import struct
import time
from random import Random

import pytest
from costly_images import COSTLY, MIB
from drawing import draw, encode
from PIL import Image

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images import ImageLimits, decode_image, find_format, validate_image
from minigpt4_serve.images.formats import IMAGE_FORMATS


@pytest.mark.parametrize("name", COSTLY)
def test_costly_files_take_little_time_and_memory(name: str) -> None:
    data = COSTLY[name]()
    if find_format(data) is None:
        pytest.skip("this build of Pillow doesn't read the format")
    limits = ImageLimits()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.thread_time()
    try:
        image = decode_image(validate_image(data, limits).data)
    except InvalidImage:
        pass
    else:
        assert image.size == (64, 48)
    assert time.thread_time() - began < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < 300 * MIB


def test_every_format_has_a_costly_file() -> None:
    named = {name.split(",")[0].split()[0] for name in COSTLY} | {"HEIC"}  # as AVIF: the same container
    assert {one.name for one in IMAGE_FORMATS} <= named | {"JPEG"}


def test_only_the_format_of_the_signature_is_opened() -> None:
    webp = encode(draw("red"), "WEBP")
    both = webp + b"\0" * (2048 - len(webp)) + b"PCD_" + b"\0" * 2000
    assert decode_image(validate_image(both, ImageLimits()).data).size == (64, 48)
    with Image.open(io.BytesIO(encode(draw(), "PPM"))) as other:
        assert other.format == "PPM"
    with pytest.raises(InvalidImage):
        validate_image(encode(draw(), "PPM"), ImageLimits())


def test_the_tiles_of_a_heic_cannot_hide_its_size() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    side = pillow_heif.options.GRID_TILE_SIZE
    pillow_heif.options.GRID_TILE_SIZE = 64
    try:
        data = encode(draw("red", (200, 100)), "HEIF")
    finally:
        pillow_heif.options.GRID_TILE_SIZE = side
    assert decode_image(validate_image(data, ImageLimits()).data).size == (200, 100)
    at = data.rindex(struct.pack(">HH", 200, 100))
    with pytest.raises(InvalidImage, match="30000 × 30000"):
        validate_image(data[:at] + struct.pack(">HH", 30_000, 30_000) + data[at + 4 :], ImageLimits())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_damaged_files_are_never_other_errors(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not any(one.name == kind for one in IMAGE_FORMATS):
        pytest.skip("this build of Pillow doesn't read the format")
    whole = encode(draw("red"), kind)
    random = Random(kind)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.randint(1, 6)):
            at = random.randrange(min(len(data), 400))
            data[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
        with contextlib.suppress(InvalidImage):
            decode_image(validate_image(bytes(data), ImageLimits()).data)
