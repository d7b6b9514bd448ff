"""The image formats that are read, in one table. Imports nothing of the project."""

from dataclasses import dataclass

__all__ = ["IMAGE_FORMATS", "IMAGE_SUFFIXES", "ImageFormat", "find_format"]


@dataclass(frozen=True)
class ImageFormat:
    """One format of encoded images.

    Attributes:
        name: Pillow's name of it.
        mime_type: the media type of a ``data:`` URL or an HTTP response.
        suffixes: endings of file names, lower case, with the dot.
        magic: what the bytes begin with, at offset 0.
        marker: what follows at an offset, if the beginning alone doesn't tell: (offset, bytes).
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


IMAGE_FORMATS = (
    ImageFormat("PNG", "image/png", (".png",), (b"\x89PNG\r\n\x1a\n",)),
    ImageFormat("JPEG", "image/jpeg", (".jpg", ".jpeg"), (b"\xff\xd8\xff",)),
    ImageFormat("WEBP", "image/webp", (".webp",), (b"RIFF",), (8, b"WEBP")),
    ImageFormat("GIF", "image/gif", (".gif",), (b"GIF87a", b"GIF89a")),
    ImageFormat("BMP", "image/bmp", (".bmp",), (b"BM",)),
)
IMAGE_SUFFIXES = tuple(suffix for one in IMAGE_FORMATS for suffix in one.suffixes)


def find_format(data: bytes) -> ImageFormat | None:
    """The format whose signature ``data`` has; None if it has none of the table's."""
    return next((one for one in IMAGE_FORMATS if one.matches(data)), None)
