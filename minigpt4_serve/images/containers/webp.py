"""WEBP: chunks of a RIFF file. Kept is the still image, or the first frame of an animation on its canvas."""

import struct

from minigpt4_serve.images.containers.container import Container, PartCounter, damaged
from minigpt4_serve.images.containers.orientation import exif_orientation, xmp_orientation

__all__ = ["read_webp"]

_IMAGE = (b"VP8 ", b"VP8L")
_ALPHA = b"ALPH"
_ANIMATED = 0x02
_HAS_ALPHA = 0x10
# Pillow decodes all files as animations: two canvases of libwebp's, the frame's bytes and the image, 4 bytes each.
_BYTES_PER_PIXEL = 16


def read_webp(data: bytes, max_frames: int) -> Container:
    """The first frame.

    Raises:
        InvalidImage: no frame, or too many chunks.
    """
    chunks = PartCounter(4096 + max_frames)
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    extended = b""
    kept: dict[bytes, bytes] = {}
    orientation: int | None = None
    frames = 0
    at = 12
    while at + 8 <= end and frames <= max_frames:
        chunks.add()
        kind, length = struct.unpack_from("<4sI", data, at)
        start = at + 8
        at = start + length + (length & 1)
        if kind == b"VP8X":
            extended = extended or data[start : start + 10]
        elif kind == b"ANMF":
            frames += 1
            kept.setdefault(kind, data[start : start + length])
        elif kind in (*_IMAGE, _ALPHA, b"ANIM"):
            kept.setdefault(kind, data[start : start + length])
        elif kind == b"EXIF":
            orientation = orientation or exif_orientation(data[start : start + min(length, 2**16)])
        elif kind == b"XMP ":
            orientation = orientation or xmp_orientation(data[start : start + min(length, 2**16)])
    animated = len(extended) == 10 and extended[0] & _ANIMATED != 0
    used = (b"ANIM", b"ANMF") if animated else (_ALPHA, *_IMAGE)
    body = b"".join(_chunk(kind, kept[kind]) for kind in used if kind in kept)
    if len(extended) == 10:
        width, height = (1 + int.from_bytes(extended[at : at + 3], "little") for at in (4, 7))
        body = _chunk(b"VP8X", bytes([extended[0] & (_ANIMATED | _HAS_ALPHA)]) + extended[1:]) + body
    else:
        width, height = _still_size(kept)
    stripped = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    return Container(stripped, width, height, _BYTES_PER_PIXEL, orientation or 1, frames=max(frames, 1))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def _still_size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    """Width and height in the header of a lossy (RFC 6386) or a lossless image."""
    if lossy := chunks.get(b"VP8 "):
        width, height = struct.unpack_from("<HH", lossy, 6)
        return width & 0x3FFF, height & 0x3FFF
    if lossless := chunks.get(b"VP8L"):
        (packed,) = struct.unpack_from("<I", lossless, 1)
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    raise damaged()
