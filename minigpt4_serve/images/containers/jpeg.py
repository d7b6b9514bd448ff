"""JPEG: segments up to the end of the first image. Further images (MPO) and videos (motion photos) follow its end."""

import re
import struct

from minigpt4_serve.images.containers.container import Container, PartCounter, damaged
from minigpt4_serve.images.containers.orientation import exif_orientation, xmp_orientation

__all__ = ["read_jpeg"]

_MAX_SEGMENTS = 4096  # 256 MiB of full segments
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# What ends the data of a scan; decoders deal with anything else in it.
_AFTER_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd9-\xef\xfe]")
_END = 0xD9
_SCAN = 0xDA
_JFIF = 0xE0
_EXIF_OR_XMP = 0xE1
_ADOBE = 0xEE  # whether three planes are RGB
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD})  # Huffman, arithmetic, quantization; lines; restart interval
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def read_jpeg(data: bytes, max_frames: int) -> Container:
    """The image up to its end marker, without segments that aren't needed to decode it.

    Raises:
        InvalidImage: no frame, more than one, or too many segments.
    """
    segments = PartCounter(_MAX_SEGMENTS)
    kept = [b"\xff\xd8"]
    orientation: int | None = None
    frame: tuple[int, int, float] | None = None  # width, height, bytes per pixel
    scans = 0
    in_scan = False
    ended = False
    at = 2
    while found := (_AFTER_SCAN if in_scan else _MARKER).search(data, at):
        segments.add()
        start = found.start()
        marker = data[start + 1]
        if in_scan:
            kept.append(data[at:start])
            in_scan = False
        at = start + 2
        if marker == _END:
            kept.append(data[start:at])
            ended = True
            break
        if marker in _STANDALONE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        at += max(length, 2)
        if marker in _FRAMES:
            if frame is not None:
                raise damaged()
            frame = _read_frame(body, progressive=marker in _PROGRESSIVE)
        elif marker == _SCAN:
            scans += 1
            in_scan = True
        elif marker == _EXIF_OR_XMP:
            orientation = orientation or _read_orientation(body)
            continue
        elif marker not in _TABLES and marker != _ADOBE and not (marker == _JFIF and body.startswith(b"JFIF")):
            continue
        kept.append(data[start:at])
    if in_scan:
        kept.append(data[at:].rstrip(b"\xff"))
    if frame is None or scans == 0:
        raise damaged()
    width, height, bytes_per_pixel = frame
    # Without its end an image is decoded twice: see ``decoding``.
    return Container(
        b"".join(kept),
        width,
        height,
        bytes_per_pixel if ended else 2 * bytes_per_pixel + 6,
        orientation or 1,
        scans=scans,
        lacks_end=not ended,
    )


def _read_frame(body: bytes, *, progressive: bool) -> tuple[int, int, float]:
    """Width, height and bytes per pixel.

    Pillow stores three planes in four bytes. Decoders keep all 16-bit coefficients of a progressive image.
    """
    height, width, planes = struct.unpack_from(">xHHB", body)
    stored = 1 if planes == 1 else 4
    if not progressive:
        return width, height, stored
    factors = [(factor >> 4) * (factor & 15) for factor in body[7 : 6 + 3 * planes : 3]]
    return width, height, stored + 2 * sum(factors) / max(1, *factors, 0)


def _read_orientation(body: bytes) -> int | None:
    if body.startswith(b"Exif\0\0"):
        return exif_orientation(body)
    return xmp_orientation(body) if body.startswith(_XMP) else None
