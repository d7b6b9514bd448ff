"""The supported image formats, in one table."""

from dataclasses import dataclass

__all__ = ["IMAGE_FORMATS", "IMAGE_SUFFIXES", "ImageFormat", "find_format", "format_names"]


@dataclass(frozen=True)
class ImageFormat:
    """One format of encoded images.

    Attributes:
        name: Pillow's name for it.
        mime_type: the media type in ``data:`` URLs and HTTP responses.
        suffixes: file name suffixes, lower case, with the dot.
        magic: possible first bytes.
        marker: (offset, bytes) that must match as well, if ``magic`` is ambiguous.
    """

    name: str
    mime_type: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    marker: tuple[int, bytes] = (0, b"")

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` has this format's signature."""
        offset, marker = self.marker
        return data.startswith(self.magic) and data[offset : offset + len(marker)] == marker


# JPEG includes files with several images (MPO), which Pillow's JPEG plugin opens as well.
IMAGE_FORMATS = (
    ImageFormat("PNG", "image/png", (".png",), (b"\x89PNG\r\n\x1a\n",)),
    ImageFormat("JPEG", "image/jpeg", (".jpg", ".jpeg"), (b"\xff\xd8\xff",)),
    ImageFormat("WEBP", "image/webp", (".webp",), (b"RIFF",), (8, b"WEBP")),
    ImageFormat("GIF", "image/gif", (".gif",), (b"GIF87a", b"GIF89a")),
    ImageFormat("BMP", "image/bmp", (".bmp",), (b"BM",)),
)
IMAGE_SUFFIXES = tuple(suffix for one in IMAGE_FORMATS for suffix in one.suffixes)


def find_format(data: bytes) -> ImageFormat | None:
    """The format whose signature ``data`` has, or None."""
    return next((one for one in IMAGE_FORMATS if one.matches(data)), None)


def format_names() -> str:
    """All formats, as part of a sentence: ``PNG, JPEG or WEBP``."""
    *others, last = (one.name for one in IMAGE_FORMATS)
    return f"{', '.join(others)} or {last}"
