"""Pictures from strangers: encoded bytes → checked format and size → upright RGB. Knows Pillow, nothing else of ours.

Everything is checked in the order of its cost: bytes, then the signature, then the header's size, frames and passes,
then the pixels. Pillow's own messages never leave this module.
"""

import base64
import binascii
import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from minigpt4_serve.errors import InvalidImage, InvalidRequest, PayloadTooLarge

__all__ = ["ImageLimits", "Picture", "check_picture", "decode_picture", "image_part", "read_data_url"]

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"RIFF": "WEBP",  # with a name of its own, eight bytes later
}
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
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
class Picture:
    """A checked picture, still encoded. ``digest`` is the SHA-256 of ``data`` in hex: every cache's key."""

    digest: str
    data: bytes


def check_picture(data: bytes, limits: ImageLimits, *, param: str | None = None) -> Picture:
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
    if not any(map(data.startswith, _SIGNATURES)) or (data.startswith(b"RIFF") and data[8:12] != b"WEBP"):
        raise InvalidImage("This is not a picture I can read. Send a PNG, JPEG, WEBP, GIF or BMP.", param=param)
    with _open(data, param) as image:
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
    return Picture(hashlib.sha256(data).hexdigest(), data)


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


def decode_picture(data: bytes) -> Image.Image:
    """Upright RGB pixels of a checked picture; the first frame of an animation.

    A phone's photo that lies on its side is turned as its EXIF says. Transparency is dropped, not composited, as the
    model saw it in training; 16-bit greys are scaled to 8 bits instead of being cut off.

    Raises:
        InvalidImage: the data is damaged.
    """
    with _open(data, None) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = upright.convert("I").point(lambda value: value / 256).convert("L")
            return to_rgb(upright)
        except Exception as error:  # Pillow's decoders raise almost anything on damaged data
            raise InvalidImage("The picture is damaged and can't be decoded. Save it again and retry.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB without transparency, which is dropped, not composited.

    By way of RGBA where Pillow would warn that a palette's transparency gets lost; the colours are the same.
    """
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_data_url(url: str, limits: ImageLimits, *, param: str | None = None) -> Picture:
    """The picture inside a ``data:image/…;base64,…`` URL. The declared type is ignored: the bytes tell.

    Raises:
        InvalidRequest: not a base64 ``data:`` URL.
        PayloadTooLarge, InvalidImage: as ``check_picture``.
    """
    header, comma, payload = url.partition(",")
    if not header.lower().startswith("data:") or not comma:
        raise InvalidRequest(
            "Pictures must be sent as data: URLs (data:image/png;base64,…); no addresses are fetched here.",
            param=param,
        )
    if not header.lower().endswith(";base64"):
        raise InvalidRequest("The data: URL must be base64-encoded (data:image/png;base64,…).", param=param)
    if len(payload) * 3 // 4 > limits.max_bytes + 2:
        raise PayloadTooLarge(f"The picture has more than {limits.max_bytes / 2**20:.1f} MiB.", param=param)
    try:
        data = base64.b64decode(payload.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("The picture's base64 text is damaged.", param=param) from None
    return check_picture(data, limits, param=param)


def image_part(data: bytes) -> dict[str, Any]:
    """An encoded image as a part of an OpenAI message, with its actual media type."""
    with Image.open(io.BytesIO(data)) as image:
        kind = Image.MIME[image.format or "PNG"]
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _open(data: bytes, param: str | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit on pixels is the smaller one; Pillow's warning would only reach the log.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise InvalidImage("The picture has far too many pixels.", param=param) from None
    except UnidentifiedImageError:
        raise InvalidImage("The picture's header is damaged; save it again and retry.", param=param) from None
    except Exception as error:  # Pillow's parsers raise almost anything on hostile headers
        raise InvalidImage("The picture can't be read; save it again and retry.", param=param) from error
