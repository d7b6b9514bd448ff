"""Pictures from strangers: encoded bytes → checked format and size → upright RGB. Knows Pillow, nothing else of ours.

Everything is checked in the order of its cost: bytes, then the signature, then the header's size, then the pixels.
Pillow's own messages never leave this module.
"""

import base64
import binascii
import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from minigpt4_serve.errors import InvalidImage, InvalidRequest, PayloadTooLarge

__all__ = ["ImageLimits", "Picture", "check_picture", "decode_picture", "read_data_url"]

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
}
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one picture: encoded bytes, and width × height in pixels."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


@dataclass(frozen=True)
class Picture:
    """A checked picture, still encoded. ``digest`` is the SHA-256 of ``data`` in hex: every cache's key."""

    digest: str
    data: bytes


def check_picture(data: bytes, limits: ImageLimits, *, param: str | None = None) -> Picture:
    """Look at bytes and header, without decoding pixels.

    Raises:
        PayloadTooLarge: more bytes than allowed.
        InvalidImage: not a PNG, JPEG, WEBP, GIF or BMP, damaged in its header, or too many pixels.
    """
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"The picture has {len(data) / 2**20:.1f} MiB; at most {limits.max_bytes / 2**20:.1f} MiB are allowed.",
            param=param,
        )
    if not data:
        raise InvalidImage("The picture is empty.", param=param)
    if not any(data.startswith(signature) for signature in _SIGNATURES):
        raise InvalidImage("This is not a picture I can read. Send a PNG, JPEG, WEBP, GIF or BMP.", param=param)
    with _open(data, param) as image:
        width, height = image.size
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"The picture has {width} × {height} pixels; at most {limits.max_pixels / 1e6:.0f} million are allowed.",
            param=param,
        )
    return Picture(hashlib.sha256(data).hexdigest(), data)


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
            "Pictures must be sent as data: URLs (data:image/png;base64,…); this server fetches no addresses.",
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
