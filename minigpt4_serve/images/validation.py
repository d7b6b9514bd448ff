"""Validation of untrusted encoded images, without decoding pixels.

Checks run in order of cost: number of bytes, signature, the walk through the container, then its numbers. Decoders get
the first image without metadata (``containers``), in the one format that the signature says. Their messages and
warnings are replaced by messages for users.
"""

import hashlib
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from minigpt4_serve.errors import InvalidImage, PayloadTooLarge
from minigpt4_serve.images.containers import Container, damaged
from minigpt4_serve.images.formats import ImageFormat, find_format, format_names, name_unsupported

__all__ = [
    "EncodedImage",
    "ImageLimits",
    "ignored_pillow_warnings",
    "open_container",
    "open_image",
    "require_format",
    "validate_image",
]

# Each scan of a progressive JPEG is decoded over all pixels; ordinary files have about ten.
_MAX_SCANS = 50
_MAX_SCANNED_PIXELS = 800_000_000


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one image.

    Attributes:
        max_bytes: encoded bytes.
        max_pixels: width × height; 8192 × 6192 are 50.7 million.
        max_frames: images in the file, of which only the first is decoded.
        max_decode_bytes: memory that decoding takes at its peak; per pixel 4 bytes for most formats, up to 10 for a
            progressive JPEG, 11 for HEIC, 13 for AVIF, 16 for WEBP.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 52_000_000
    max_frames: int = 1000
    max_decode_bytes: int = 288 * 2**20


@dataclass(frozen=True)
class EncodedImage:
    """A valid image, still encoded.

    Attributes:
        digest: the SHA-256 of ``data`` in hexadecimal, the key in caches.
        decode_bytes: memory that decoding takes at its peak; 0 if unknown.
    """

    digest: str
    data: bytes
    decode_bytes: int = 0


def validate_image(data: bytes, limits: ImageLimits, *, param: str | None = None) -> EncodedImage:
    """Validate an image by its size, signature and header.

    Raises:
        PayloadTooLarge: more bytes than allowed.
        InvalidImage: unsupported format, damaged header, or too many pixels, frames, scans or parts.
    """
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(
            f"The picture has {len(data) / 2**20:.1f} MiB; at most {limits.max_bytes / 2**20:.1f} MiB are allowed.",
            param=param,
        )
    try:
        found, container = open_container(data, limits.max_frames)
        _check_numbers(container, limits)
        with open_image(found, container) as image:
            width, height = image.size
        if width * height > limits.max_pixels:
            raise InvalidImage(_pixels_sentence(width, height, limits))
    except InvalidImage as error:
        error.param = param
        raise
    return EncodedImage(hashlib.sha256(data).hexdigest(), data, container.decode_bytes)


def open_container(data: bytes, max_frames: int = 1) -> tuple[ImageFormat, Container]:
    """An image's format and the structure of its file; frames are counted up to ``max_frames`` + 1.

    Raises:
        InvalidImage: empty, unsupported format, damaged, or too many parts.
    """
    if not data:
        raise InvalidImage("The picture is empty.")
    found = require_format(data)
    try:
        return found, found.read(data, max_frames)
    except (struct.error, IndexError, KeyError):  # it ends early, or lacks something
        raise damaged() from None


def _check_numbers(container: Container, limits: ImageLimits) -> None:
    if container.width * container.height > limits.max_pixels:
        raise InvalidImage(_pixels_sentence(container.width, container.height, limits))
    if container.frames > limits.max_frames:
        raise InvalidImage(f"The picture's file has more than {limits.max_frames} frames or pages; send one of them.")
    if container.scans > _MAX_SCANS:
        raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} scans; save it as a baseline JPEG.")
    if container.scans * container.width * container.height > _MAX_SCANNED_PIXELS:
        raise InvalidImage("The JPEG has too many scans for its size; save it as a baseline JPEG.")
    if container.decode_bytes > limits.max_decode_bytes:
        raise InvalidImage(
            f"Decoding a picture of {container.width} × {container.height} pixels in this format takes too much "
            "memory; send it smaller, or as a baseline JPEG."
        )


def _pixels_sentence(width: int, height: int, limits: ImageLimits) -> str:
    return f"The picture has {width} × {height} pixels; at most {limits.max_pixels / 1e6:.0f} million are allowed."


def require_format(data: bytes) -> ImageFormat:
    """The format of an image by its signature.

    Raises:
        InvalidImage: it isn't supported; the message names the format if it is known.
    """
    found = find_format(data)
    if found is not None:
        return found
    name = name_unsupported(data)
    what = f"{name} files can't be read here" if name else "This is not a picture in a supported format"
    raise InvalidImage(f"{what}. Send a {format_names()}.")


def open_image(found: ImageFormat, container: Container) -> Image.Image:
    """Open a container's image in its format alone, without decoding its pixels.

    Raises:
        InvalidImage: damaged header.
    """
    file = io.BytesIO(container.data)
    try:
        with ignored_pillow_warnings():
            if found.name == "HEIC":
                from pillow_heif import HeifImageFile

                return HeifImageFile(file)  # type: ignore[no-untyped-call]
            return Image.open(file, formats=(found.name,))
    except Image.DecompressionBombError:
        raise InvalidImage("The picture has far too many pixels.") from None
    except UnidentifiedImageError:
        raise damaged() from None
    except Exception as error:  # parsers raise many kinds of exceptions for crafted headers
        raise InvalidImage("The picture can't be read; save it again and retry.") from error


@contextmanager
def ignored_pillow_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow's (large images, damaged data), which would only fill the log."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
