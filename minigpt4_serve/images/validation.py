"""Checks of encoded images from strangers, before any pixel is decoded.

Checked in the order of cost: bytes, then the signature, then the header's size, frames and passes. Pillow's own
messages never leave this module.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from minigpt4_serve.errors import InvalidImage, PayloadTooLarge
from minigpt4_serve.images.formats import IMAGE_FORMATS, find_format

__all__ = ["EncodedImage", "ImageLimits", "open_image", "validate_image"]

_PILLOW_FORMATS = tuple(one.name for one in IMAGE_FORMATS)
# A progressive JPEG is decoded in passes over all of its pixels; honest ones have about ten. A pass's mark can't occur
# in compressed data, and by chance it does a few times in other segments.
_MAX_SCANS = 50


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one picture: encoded bytes, width × height in pixels, frames of an animation (one is looked at)."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_frames: int = 1000


@dataclass(frozen=True)
class EncodedImage:
    """A checked picture, still encoded. ``digest`` is the SHA-256 of ``data`` in hex: every cache's key."""

    digest: str
    data: bytes


def validate_image(data: bytes, limits: ImageLimits, *, param: str | None = None) -> EncodedImage:
    """Look at bytes and header, without decoding pixels.

    Raises:
        PayloadTooLarge: more bytes than allowed.
        InvalidImage: not a PNG, JPEG, WEBP, GIF or BMP, damaged in its header, or too many pixels, frames or passes.
    """
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"The picture has {len(data) / 2**20:.1f} MiB; at most {limits.max_bytes / 2**20:.1f} MiB are allowed.",
            param=param,
        )
    if not data:
        raise InvalidImage("The picture is empty.", param=param)
    if find_format(data) is None:
        raise InvalidImage("This is not a picture I can read. Send a PNG, JPEG, WEBP, GIF or BMP.", param=param)
    with open_image(data, param=param) as image:
        width, height = image.size
        frames = getattr(image, "n_frames", 1) if image.format != "GIF" else _gif_frames(data, limits.max_frames)
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"The picture has {width} × {height} pixels; at most {limits.max_pixels / 1e6:.0f} million are allowed.",
            param=param,
        )
    if frames > limits.max_frames:
        raise InvalidImage(
            f"The picture is an animation of more than {limits.max_frames} frames; send one of its frames.", param=param
        )
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MAX_SCANS:
        raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} passes; save it as an ordinary one.", param=param)
    return EncodedImage(hashlib.sha256(data).hexdigest(), data)


def _gif_frames(data: bytes, at_most: int) -> int:
    """Frames of a GIF, counted no further than just past ``at_most``: Pillow would read the whole file for it.

    Walks from block to block. Blocks so small that only a crafted file has them count as frames.
    """
    at, frames, budget = 13 + _colours(data[10]), 0, len(data) // 32 + 1000
    while at + 1 < len(data) and frames <= at_most:
        if data[at] == 0x21:  # an extension: its label, then sub-blocks
            at += 2
        elif data[at] == 0x2C and at + 9 < len(data):  # a frame: place and size, its own colours, code size, sub-blocks
            frames += 1
            at += 11 + _colours(data[at + 9])
        else:
            break
        while at < len(data) and data[at]:
            at += data[at] + 1
            budget -= 1
            if budget < 0:
                return at_most + 1
        at += 1
    return frames


def _colours(flags: int) -> int:
    """Bytes of a GIF's table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def open_image(data: bytes, *, param: str | None = None) -> Image.Image:
    """Open an encoded image without decoding its pixels; only formats of the table are tried.

    Raises:
        InvalidImage: the header is damaged or of another format.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit on pixels is the smaller one; Pillow's warning would only reach the log.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except Image.DecompressionBombError:
        raise InvalidImage("The picture has far too many pixels.", param=param) from None
    except UnidentifiedImageError:
        raise InvalidImage("The picture's header is damaged; save it again and retry.", param=param) from None
    except Exception as error:  # Pillow's parsers raise almost anything on hostile headers
        raise InvalidImage("The picture can't be read; save it again and retry.", param=param) from error
