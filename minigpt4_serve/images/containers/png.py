"""PNG: chunks. Kept are the header, the palette, its transparency and the first image's data, in one chunk."""

import binascii
import struct
import zlib

from minigpt4_serve.images.containers.container import Container, PartCounter, damaged
from minigpt4_serve.images.containers.orientation import exif_orientation, xmp_orientation

__all__ = ["read_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_PALETTE = (b"PLTE", b"tRNS")
_MAX_PALETTE = 768
_TEXT = (b"iTXt", b"tEXt", b"zTXt")
_XMP = b"XML:com.adobe.xmp\0"
_RAW_EXIF = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_MAX_TEXT = 2**16


def read_png(data: bytes, max_frames: int) -> Container:
    """The image that viewers without animations show.

    Raises:
        InvalidImage: no header, or too many chunks.
    """
    # Encoders write image data in chunks of 8 KiB and more.
    chunks = PartCounter(4096 + len(data) // 1024)
    header = b""
    palette: dict[bytes, bytes] = {}
    image_data: list[bytes] = []
    in_image = True  # image data in later chunks belongs to nothing
    orientation: int | None = None
    frames = 1
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        chunks.add()
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + min(length, _MAX_TEXT)] if kind != b"IDAT" else b""
        end = at + 12 + length
        if kind == b"IDAT":
            if in_image:
                image_data.append(data[at + 8 : end - 4])
        else:
            in_image = in_image and not image_data
        if not header:
            if kind != b"IHDR" or length != 13:
                raise damaged()
            header = data[at:end]
        elif kind in _PALETTE and length <= _MAX_PALETTE:
            palette.setdefault(kind, data[at:end])
        elif kind == b"acTL" and len(body) >= 4:
            frames = int.from_bytes(body[:4], "big")
        elif kind == b"eXIf":
            orientation = orientation or exif_orientation(body)
        elif kind in _TEXT:
            orientation = orientation or _text_orientation(kind, body)
        elif kind == b"IEND":
            break
        at = end
    if not header:
        raise damaged()
    width, height = struct.unpack_from(">II", header, 8)
    joined = b"".join(image_data)
    chunk = struct.pack(">I", len(joined)) + b"IDAT" + joined + b"\0\0\0\0"  # decoders ignore this checksum
    stripped = b"".join((_SIGNATURE, header, *palette.values(), chunk, _END))
    return Container(stripped, width, height, 4, orientation or 1, frames=min(frames, max_frames + 1))


def _text_orientation(kind: bytes, body: bytes) -> int | None:
    """The orientation in the first 64 KiB of XMP data, or of EXIF data as ImageMagick writes it: in hexadecimal."""
    if kind == b"iTXt":
        return xmp_orientation(body) if body.startswith(_XMP) else None
    key = next((key for key in _RAW_EXIF if body.startswith(key)), None)
    if key is None:
        return None
    text = body[len(key) :]
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], _MAX_TEXT)
        digits = b"".join(text.split()[2:])  # after a name and the length
        return exif_orientation(binascii.unhexlify(digits[: len(digits) // 2 * 2]))
    except (zlib.error, binascii.Error):
        return None
