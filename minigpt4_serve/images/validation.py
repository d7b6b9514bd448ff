"""Validation of untrusted encoded images, without decoding pixels.

Checks run in order of cost: number of bytes, signature, then dimensions, frames and scans from the header. Messages and
warnings of Pillow's are replaced by messages for users.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from minigpt4_serve.errors import InvalidImage, PayloadTooLarge
from minigpt4_serve.images.formats import IMAGE_FORMATS, find_format, format_names

__all__ = [
    "EncodedImage",
    "ImageLimits",
    "ignored_pillow_warnings",
    "open_image",
    "unsupported_format",
    "validate_image",
]

_PILLOW_FORMATS = tuple(one.name for one in IMAGE_FORMATS)
# Each scan of a progressive JPEG is decoded over all pixels; ordinary files have about ten. The marker of a scan can't
# occur in compressed data, and occurs by chance a few times in other segments.
_MAX_SCANS = 50
_JPEG_SCAN = b"\xff\xda"


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one image: encoded bytes, width × height in pixels, frames (only the first is decoded)."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_frames: int = 1000


@dataclass(frozen=True)
class EncodedImage:
    """A valid image, still encoded. ``digest`` is the SHA-256 of ``data`` in hexadecimal, the key in caches."""

    digest: str
    data: bytes


def validate_image(data: bytes, limits: ImageLimits, *, param: str | None = None) -> EncodedImage:
    """Validate an image by its size, signature and header.

    Raises:
        PayloadTooLarge: more bytes than allowed.
        InvalidImage: unsupported format, damaged header, or too many pixels, frames or scans.
    """
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"The picture has {len(data) / 2**20:.1f} MiB; at most {limits.max_bytes / 2**20:.1f} MiB are allowed.",
            param=param,
        )
    if not data:
        raise InvalidImage("The picture is empty.", param=param)
    found = find_format(data)
    if found is None:
        raise unsupported_format(param)
    with open_image(data, param=param) as image:
        width, height = image.size
        frames = getattr(image, "n_frames", 1) if found.name != "GIF" else _gif_frames(data, limits.max_frames)
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"The picture has {width} × {height} pixels; at most {limits.max_pixels / 1e6:.0f} million are allowed.",
            param=param,
        )
    if frames > limits.max_frames:
        raise InvalidImage(
            f"The picture is an animation of more than {limits.max_frames} frames; send one of its frames.", param=param
        )
    if found.name == "JPEG" and data.count(_JPEG_SCAN) > _MAX_SCANS:
        raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} scans; save it as a baseline JPEG.", param=param)
    return EncodedImage(hashlib.sha256(data).hexdigest(), data)


def unsupported_format(param: str | None = None) -> InvalidImage:
    """The error for data without a known signature."""
    return InvalidImage(f"This is not a picture in a supported format. Send a {format_names()}.", param=param)


def _gif_frames(data: bytes, at_most: int) -> int:
    """Frames of a GIF, counted up to ``at_most`` + 1. Pillow would read the whole file for it.

    Walks from block to block, and gives up with ``at_most`` + 1 at an average sub-block size that only crafted files
    have.
    """
    frames = 0
    at = 13 + _color_table_bytes(data[10])
    sub_blocks_left = len(data) // 32 + 1000
    while at + 1 < len(data) and frames <= at_most:
        if data[at] == 0x21:  # an extension: its label, then sub-blocks
            at += 2
        elif data[at] == 0x2C and at + 9 < len(data):  # a frame: position, size, color table, code size, sub-blocks
            frames += 1
            at += 11 + _color_table_bytes(data[at + 9])
        else:
            break
        while at < len(data) and data[at]:
            at += data[at] + 1
            sub_blocks_left -= 1
            if sub_blocks_left < 0:
                return at_most + 1
        at += 1
    return frames


def _color_table_bytes(flags: int) -> int:
    """Size of a GIF's color table in bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def open_image(data: bytes, *, param: str | None = None) -> Image.Image:
    """Open an encoded image in one of the supported formats, without decoding its pixels.

    Raises:
        InvalidImage: damaged header, or another format.
    """
    try:
        with ignored_pillow_warnings():
            return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except Image.DecompressionBombError:
        raise InvalidImage("The picture has far too many pixels.", param=param) from None
    except UnidentifiedImageError:
        raise InvalidImage("The picture's header is damaged; save it again and retry.", param=param) from None
    except Exception as error:  # Pillow's parsers raise many kinds of exceptions for crafted headers
        raise InvalidImage("The picture can't be read; save it again and retry.", param=param) from error


@contextmanager
def ignored_pillow_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow's (large images, damaged EXIF data or MPO headers), which would only fill the log."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
