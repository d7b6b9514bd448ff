"""The supported image formats, in one table."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from PIL import features

from minigpt4_serve.images.containers import (
    Container,
    read_avif,
    read_bmp,
    read_gif,
    read_heic,
    read_jpeg,
    read_png,
    read_tiff,
    read_webp,
)

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "KNOWN_FORMATS",
    "ImageFormat",
    "find_format",
    "format_names",
    "name_unsupported",
]


@dataclass(frozen=True)
class ImageFormat:
    """One format of encoded images.

    Attributes:
        name: Pillow's name for it, but HEIC, which pillow-heif opens.
        mime_type: the media type in ``data:`` URLs and HTTP responses.
        suffixes: file name suffixes, lower case, with the dot.
        read: reads its container; arguments are the data and the number of frames above which it needn't count.
        magic: possible first bytes.
        marker: (offset, bytes) that must match as well, if ``magic`` is ambiguous.
        brands: brands of a HEIF container, in place of ``magic``.
        sent_as: the format in which it is sent to other servers, which needn't support this one.
    """

    name: str
    mime_type: str
    suffixes: tuple[str, ...]
    read: Callable[[bytes, int], Container]
    magic: tuple[bytes, ...] = ()
    marker: tuple[int, bytes] = (0, b"")
    brands: frozenset[bytes] = frozenset()
    sent_as: str | None = None

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` has this format's signature."""
        if self.brands:
            return not self.brands.isdisjoint(_brands(data))
        offset, marker = self.marker
        return data.startswith(self.magic) and data[offset : offset + len(marker)] == marker


def _brands(data: bytes) -> list[bytes]:
    """The brands that determine a HEIF file's format: the major one, or the compatible ones if it is a general one."""
    if data[4:8] != b"ftyp":
        return []
    major = data[8:12]
    if major not in (b"mif1", b"msf1"):
        return [major]
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return [data[at : at + 4] for at in range(16, end - 3, 4)]


# JPEG includes files with several images (MPO).
KNOWN_FORMATS = (
    ImageFormat("PNG", "image/png", (".png",), read_png, (b"\x89PNG\r\n\x1a\n",)),
    ImageFormat("JPEG", "image/jpeg", (".jpg", ".jpeg"), read_jpeg, (b"\xff\xd8\xff",)),
    ImageFormat("WEBP", "image/webp", (".webp",), read_webp, (b"RIFF",), (8, b"WEBP")),
    ImageFormat("GIF", "image/gif", (".gif",), read_gif, (b"GIF87a", b"GIF89a")),
    ImageFormat("BMP", "image/bmp", (".bmp",), read_bmp, (b"BM",), sent_as="PNG"),
    ImageFormat("TIFF", "image/tiff", (".tif", ".tiff"), read_tiff, (b"II*\0", b"MM\0*"), sent_as="PNG"),
    ImageFormat("AVIF", "image/avif", (".avif",), read_avif, brands=frozenset({b"avif", b"avis"}), sent_as="JPEG"),
    ImageFormat(
        "HEIC",
        "image/heic",
        (".heic", ".heif", ".hif"),
        read_heic,
        brands=frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}),
        sent_as="JPEG",
    ),
)
_AVAILABLE = {
    "AVIF": lambda: features.check("avif") is True,
    "HEIC": lambda: importlib.util.find_spec("pillow_heif") is not None,
}
IMAGE_FORMATS = tuple(one for one in KNOWN_FORMATS if _AVAILABLE.get(one.name, lambda: True)())
"""The formats that can be read here: AVIF depends on Pillow's build, HEIC on the extra ``heif``."""
IMAGE_SUFFIXES = tuple(suffix for one in IMAGE_FORMATS for suffix in one.suffixes)

# Formats that people send and that aren't read: (offset, signature, name).
_UNSUPPORTED = (
    (0, b"%PDF", "PDF"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"\x1f\x8b", "GZIP"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\x1aE\xdf\xa3", "WEBM or MKV"),
    (4, b"ftypcrx", "CR3"),
)
_MAX_HEAD = 4096
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_ASIDES = (("<!--", "-->"), ("<?", "?>"), ("<!", ">"))  # comment, XML declaration, document type
_MARKUP = {"<svg": "SVG", "<html": "HTML", "<head": "HTML", "<body": "HTML"}


def find_format(data: bytes) -> ImageFormat | None:
    """The format whose signature ``data`` has, or None."""
    return next((one for one in IMAGE_FORMATS if one.matches(data)), None)


def name_unsupported(data: bytes) -> str | None:
    """The name of a known format that isn't read here, or None."""
    for one in KNOWN_FORMATS:
        if one not in IMAGE_FORMATS and one.matches(data):
            return one.name
    for offset, signature, name in _UNSUPPORTED:
        if data.startswith(signature, offset):
            return name
    return "MP4 or MOV" if data[4:8] == b"ftyp" else _name_text(data[:_MAX_HEAD])


def _name_text(head: bytes) -> str | None:
    """The format of a file that begins with text: after a byte order mark, blanks, and markup that shows nothing."""
    encoding = "latin-1"
    for mark, marked in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            head = head.removeprefix(mark)
            encoding = marked
    text = head.decode(encoding, errors="ignore").lstrip().lower()
    for begin, name in (("%pdf", "PDF"), ("%!ps", "PostScript")):
        if text.startswith(begin):
            return name
    kind = None
    while aside := next(((begin, end) for begin, end in _ASIDES if text.startswith(begin)), None):
        kind = "HTML" if text.startswith("<!doctype html") else kind or "SVG or XML"
        text = text.partition(aside[1])[2].lstrip()
    return next((name for begin, name in _MARKUP.items() if text.startswith(begin)), kind)


def format_names() -> str:
    """All formats, as part of a sentence: ``PNG, JPEG or WEBP``."""
    *others, last = (one.name for one in IMAGE_FORMATS)
    return f"{', '.join(others)} or {last}"
