"""Small image files that cost much where nothing bounds them."""

import struct
import zlib
from collections.abc import Callable

from drawing import draw, encode
from PIL import Image

MIB = 2**20


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _jpeg(*segments: bytes) -> bytes:
    data = encode(draw("red"), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def _png(*chunks: bytes, at: int = 33) -> bytes:
    data = encode(draw("red"))
    return data[:at] + b"".join(chunks) + data[at:]


def _webp(*chunks: bytes) -> bytes:
    body = encode(draw("red"), "WEBP")[12:]
    extended = struct.pack("<4sIB3x", b"VP8X", 10, 0x08) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    body = extended + body + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def _gif(extensions: bytes) -> bytes:
    data = encode(draw("red"), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + extensions + data[at:]


def _bmp(height: int, rle: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 7000, height, 1, 8, 1, len(rle), 0, 0, 256, 0)
    palette = b"".join(bytes([i, 0, i, 0]) for i in range(256))
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rle), 0, 0, 54 + 1024) + header + palette + rle


def _overlapping(size: int, tags: int) -> bytes:
    """EXIF data whose tags all claim the same bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + i, 7, size, 8) for i in range(tags))
    return b"II*\0" + struct.pack("<I", 8 + size) + b"x" * size + struct.pack("<H", tags) + entries + bytes(4)


def _exif_parts(exif: bytes) -> bytes:
    parts = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    return _jpeg(*(_segment(0xE1, b"Exif\0\0" + part) for part in parts))


def _mpf(kind: int) -> bytes:
    tags = b"".join(struct.pack(">HHLL", i, kind, 65392, 8) for i in range(1, 5001))
    body = b"MPF\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + tags + b"\0\0\0\0"
    return _jpeg(_segment(0xE2, body + b"\1" * (65404 - len(body))))


def _tiff(size: int, tags: int) -> bytes:
    data = bytearray(encode(draw("red"), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    old = bytes(data[directory + 2 : directory + 2 + 12 * count])
    data[4:8] = struct.pack("<I", len(data))
    new = b"".join(struct.pack("<HHII", 40_000 + i, 7, size, 8) for i in range(tags))
    filler = b"x" * size
    return bytes(data) + struct.pack("<H", count + tags) + old + new + b"\0\0\0\0" + filler


def _animated_canvas(side: int) -> bytes:
    frame = encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    size = (side - 1).to_bytes(3, "little")
    body = _riff(b"VP8X", b"\x02\0\0\0" + size + size) + _riff(b"ANIM", bytes(6))
    body += _riff(b"ANMF", bytes(12) + b"\0\0\0\0" + frame)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _avif_of_boxes(count: int) -> bytes:
    return encode(draw("red"), "AVIF") + struct.pack(">I4s", 8, b"free") * count


def _avif_that_says_less(side: int) -> bytes:
    data = encode(Image.new("RGB", (side, side)), "AVIF", speed=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", 64, 48) + data[at + 8 :]


COSTLY: dict[str, Callable[[], bytes]] = {
    "MPF of signed bytes": lambda: _mpf(6),
    "MPF of doubles": lambda: _mpf(12),
    "MPF of rationals": lambda: _mpf(5),
    "JPEG, overlapping EXIF tags in several parts": lambda: _exif_parts(_overlapping(20_000, 50_000)),
    "JPEG, overlapping EXIF tags in one part": lambda: _jpeg(_segment(0xE1, b"Exif\0\0" + _overlapping(32_000, 2_700))),
    "PNG, overlapping EXIF tags": lambda: _png(_chunk(b"eXIf", _overlapping(200_000, 16_000))),
    "PNG, overlapping EXIF tags after the image": lambda: _png(_chunk(b"eXIf", _overlapping(200_000, 16_000)), at=-12),
    "PNG, overlapping EXIF tags as text": lambda: _png(
        _chunk(
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(b"\nexif\n 400000\n" + (b"Exif\0\0" + _overlapping(200_000, 16_000)).hex().encode()),
        )
    ),
    "WEBP, overlapping EXIF tags": lambda: _webp(_riff(b"EXIF", _overlapping(200_000, 16_000))),
    "TIFF, overlapping tags": lambda: _tiff(400_000, 16_000),
    "GIF comments of one byte": lambda: _gif(b"!\xfe\x01a\0" * 1_000_000),
    "GIF comment of many blocks": lambda: _gif(b"!\xfe" + b"\x01a" * 4_000_000 + b"\0"),
    "GIF extensions without blocks": lambda: _gif(b"!\xfe\0" * 3_000_000),
    "GIF application blocks": lambda: _gif(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0" * 400_000),
    "JPEG, small EXIF parts": lambda: _jpeg(*[_segment(0xE1, b"Exif\0\0abcd")] * 150_000),
    "JPEG, empty APP13 segments": lambda: _jpeg(*[_segment(0xED, b"")] * 2_000_000),
    "JPEG, empty comments": lambda: _jpeg(*[_segment(0xFE, b"")] * 2_000_000),
    "JPEG, padding": lambda: _jpeg(b"\xff" * (10 * MIB)),
    "JPEG, escaped markers before the frame": lambda: _jpeg(b"\xff\0" * (5 * MIB)),
    "JPEG, restart markers before the frame": lambda: _jpeg(b"\xff\xd0" * (5 * MIB)),
    "JPEG, tables": lambda: _jpeg(*[_segment(0xDB, b"")] * 2_000_000),
    "PNG, empty private chunks": lambda: _png(*[_chunk(b"prVt", b"")] * 1_000_000),
    "PNG, empty private chunks after the image": lambda: _png(*[_chunk(b"prVt", b"")] * 1_000_000, at=-12),
    "PNG, empty image chunks": lambda: _png(*[_chunk(b"IDAT", b"")] * 1_000_000),
    "PNG, text chunks": lambda: _png(*[_chunk(b"tEXt", b"a\0b")] * 1_000_000),
    "WEBP, empty chunks": lambda: _webp(_riff(b"ABCD", b"") * 2_000_000),
    "WEBP, a large canvas": lambda: _animated_canvas(7000),
    "BMP, run lengths": lambda: _bmp(7000, b"\x01\x05" * (8 * MIB)),
    "BMP, ends of lines": lambda: _bmp(7000, b"\0\0" * 7000),
    "AVIF, empty boxes": lambda: _avif_of_boxes(2_000_000),
    "AVIF, overlapping EXIF tags": lambda: encode(draw("red"), "AVIF", exif=_overlapping(200_000, 16_000)),
    "AVIF, frames larger than the image": lambda: _avif_that_says_less(7500),
}
