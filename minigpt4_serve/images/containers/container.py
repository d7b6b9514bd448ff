"""What the readers of containers have in common."""

from dataclasses import dataclass

from minigpt4_serve.errors import InvalidImage

__all__ = ["Container", "PartCounter", "damaged"]


@dataclass(frozen=True)
class Container:
    """The structure of an encoded image, read without decoding anything.

    Attributes:
        data: the first image of the file without metadata, which decoders open in place of the file.
        width, height: pixels of the canvas, before ``orientation`` is applied.
        bytes_per_pixel: memory that decoding takes at its peak, per pixel of the canvas.
        orientation: of EXIF, 1 to 8; 1 is upright.
        frames: images in the file, counted up to the limit + 1.
        scans: passes over all pixels.
        lacks_end: a JPEG's last marker is missing; it may be complete in spite of that.
    """

    data: bytes
    width: int
    height: int
    bytes_per_pixel: float
    orientation: int = 1
    frames: int = 1
    scans: int = 1
    lacks_end: bool = False

    @property
    def decode_bytes(self) -> int:
        """Memory that decoding takes at its peak."""
        return int(self.width * self.height * self.bytes_per_pixel)


class PartCounter:
    """Counts segments, chunks or blocks: ordinary files have few, files made to take time have millions."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def add(self) -> None:
        """Count one part.

        Raises:
            InvalidImage: there are more than the limit.
        """
        self._left -= 1
        if self._left < 0:
            raise InvalidImage("The picture consists of too many small parts; save it again and retry.")


def damaged() -> InvalidImage:
    """The error for a container that can't be read."""
    return InvalidImage("The picture's header is damaged; save it again and retry.")
