"""BMP: a header of fixed size, without metadata."""

import struct

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images.containers.container import Container, damaged

__all__ = ["read_bmp"]

_OLD_HEADER = 12
_RUN_LENGTHS = (1, 2)
# Pillow decodes run lengths in Python, about a microsecond for each byte and pixel.
_MAX_RUN_LENGTH_BYTES = 2**18
_MAX_RUN_LENGTH_PIXELS = 2**19


def read_bmp(data: bytes, max_frames: int) -> Container:
    """The whole file.

    Raises:
        InvalidImage: a large image with run-length encoding.
    """
    (header,) = struct.unpack_from("<I", data, 14)
    if header == _OLD_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
        return Container(data, width, height, 4)
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if width < 0:
        raise damaged()
    height = abs(height)  # negative: from top to bottom
    if compression in _RUN_LENGTHS and (len(data) > _MAX_RUN_LENGTH_BYTES or width * height > _MAX_RUN_LENGTH_PIXELS):
        raise InvalidImage("BMP pictures with run-length encoding must be small; save it as a PNG.")
    return Container(data, width, height, 4)
