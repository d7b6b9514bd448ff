"""Decodes images that ``validation`` has accepted."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images.containers import Container
from minigpt4_serve.images.formats import ImageFormat
from minigpt4_serve.images.validation import (
    EncodedImage,
    ignored_pillow_warnings,
    open_container,
    open_image,
    require_format,
)

__all__ = [
    "DecodedImage",
    "decode_image",
    "decode_pixels",
    "encode_portable",
    "load_container",
    "to_portable",
]

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_AXES = (5, 6, 7, 8)
_MIRRORS_X = (2, 3, 7, 8)
_MIRRORS_Y = (3, 4, 6, 7)
_STRIP_PIXELS = 2**20

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class DecodedImage:
    """Pixels as they are stored, in any mode. Parts are turned upright and into RGB as they are needed.

    A second copy of 50 million pixels would take 200 MB.
    """

    pixels: Image.Image
    orientation: int = 1
    scale_16_bits: bool = False
    """Whether 16-bit grayscale is scaled to 8 bits; Pillow's conversion clips it."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.pixels.size
        return (height, width) if self.orientation in _SWAPS_AXES else (width, height)

    def crop(self, box: Box) -> Image.Image:
        """A part of the upright image, as RGB.

        Raises:
            InvalidImage: pixels of a kind that has no conversion to RGB.
        """
        left, top, right, bottom = box
        width, height = self.pixels.size
        if self.orientation in _SWAPS_AXES:
            left, top, right, bottom = top, left, bottom, right
        if self.orientation in _MIRRORS_X:
            left, right = width - right, width - left
        if self.orientation in _MIRRORS_Y:
            top, bottom = height - bottom, height - top
        whole = (left, top, right, bottom) == (0, 0, width, height)
        part = self.pixels if whole else self.pixels.crop((left, top, right, bottom))
        if self.orientation in _TRANSPOSITIONS:
            part = part.transpose(_TRANSPOSITIONS[self.orientation])
        try:
            if self.scale_16_bits and part.mode.startswith("I"):
                part = part.convert("I").point(lambda value: value / 256).convert("L")
            return _to_rgb(part)
        except (ValueError, OSError) as error:  # a mode without a conversion to RGB
            raise _undecodable() from error

    def strips(self, *, of_columns: bool) -> Iterator[tuple[Box, Image.Image]]:
        """Strips of rows, or of columns, of the upright image, and their boxes."""
        width, height = self.size
        length, across = (width, height) if of_columns else (height, width)
        step = max(1, _STRIP_PIXELS // across)
        for begin in range(0, length, step):
            end = min(begin + step, length)
            box = (begin, 0, end, height) if of_columns else (0, begin, width, end)
            yield box, self.crop(box)


def decode_image(data: bytes) -> Image.Image:
    """An image's pixels as RGB, in the orientation of its EXIF data; the first frame of an animation.

    Transparency is dropped, not composited, as in the model's training. 16-bit grayscale is scaled to 8 bits; Pillow's
    conversion would clip it.

    Raises:
        InvalidImage: unsupported format, or the data is damaged.
    """
    decoded = decode_pixels(data)
    return decoded.crop((0, 0, *decoded.size))


def decode_pixels(data: bytes) -> DecodedImage:
    """An image's pixels as stored; the first frame of an animation.

    Raises:
        InvalidImage: unsupported format, or the data is damaged.
    """
    found, container = open_container(data)
    return load_container(found, container)


def load_container(found: ImageFormat, container: Container) -> DecodedImage:
    """The pixels of a container that has been read, see ``decode_pixels``."""
    try:
        with ignored_pillow_warnings():
            image = _load(found, container)
            orientation = container.orientation
            if found.name == "AVIF":  # Pillow writes the container's rotation into EXIF data of its own
                orientation = image.getexif().get(0x0112, 1)
    except InvalidImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions for damaged data
        raise _undecodable() from error
    return DecodedImage(image, orientation, scale_16_bits=True)


def _undecodable() -> InvalidImage:
    return InvalidImage("The picture is damaged and can't be decoded. Save it again and retry.")


def _load(found: ImageFormat, container: Container) -> Image.Image:
    if not container.lacks_end:
        image = open_image(found, container)
        image.load()
        return image
    # Decoders make up pixels whose data is missing before the end marker. If none is missing, filler changes no pixel.
    image, other = (
        open_image(found, replace(container, data=container.data + filler + b"\xff\xd9"))
        for filler in (b"", b"\x55" * 64)
    )
    if image.tobytes() != other.tobytes():
        raise _undecodable()
    return image


def encode_portable(data: bytes) -> bytes:
    """A valid image in a format that every OpenAI-compatible server supports: PNG, JPEG, WEBP or GIF.

    These are returned unchanged. Others are encoded again: HEIC and AVIF, which are lossy, as JPEG, the rest as PNG.

    Raises:
        InvalidImage: unsupported format, or the data is damaged.
    """
    found = require_format(data)
    if found.sent_as is None:
        return data
    file = io.BytesIO()
    decode_image(data).save(file, found.sent_as, quality=95)  # PNG ignores the quality
    return file.getvalue()


def to_portable(image: EncodedImage) -> EncodedImage:
    """A valid image as ``encode_portable`` encodes it; itself if its data doesn't change."""
    data = encode_portable(image.data)
    return image if data is image.data else EncodedImage(hashlib.sha256(data).hexdigest(), data)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB and drop transparency, without compositing; an RGB image is returned as it is.

    Palettes with transparency are converted to RGBA first, which gives the same colors without a warning of Pillow's.
    """
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
