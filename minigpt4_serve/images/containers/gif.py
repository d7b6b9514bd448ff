"""GIF: blocks. Kept are the header, the palettes, and the first frame with the color that is transparent in it."""

import struct

from minigpt4_serve.images.containers.container import Container, PartCounter, damaged

__all__ = ["read_gif"]

_EXTENSION = 0x21
_FRAME = 0x2C
_GRAPHIC_CONTROL = 0xF9
_END = b"\x3b"


def read_gif(data: bytes, max_frames: int) -> Container:
    """The first frame.

    Raises:
        InvalidImage: no frame, or too many blocks.
    """
    # Encoders fill their blocks, of 255 bytes.
    blocks = PartCounter(4096 + 4 * max_frames + len(data) // 32)
    width, height = struct.unpack_from("<HH", data, 6)
    at = 13 + _color_table_bytes(data[10])
    kept = [data[:at]]
    control = b""
    frames = 0
    while at + 1 < len(data) and frames <= max_frames:
        blocks.add()
        start = at
        if data[at] == _EXTENSION:
            at = _after_blocks(data, at + 2, blocks)
            if frames == 0 and data[start + 1] == _GRAPHIC_CONTROL:
                control = data[start : min(at, start + 8)]
        elif data[at] == _FRAME and at + 9 < len(data):
            left, top, across, down, flags = struct.unpack_from("<HHHHB", data, at + 1)
            at = _after_blocks(data, at + 11 + _color_table_bytes(flags), blocks)
            frames += 1
            if frames == 1:
                kept += [control, data[start:at], _END]
                # The canvas grows with the frame, as in Pillow.
                width = max(width, left + across)
                height = max(height, top + down)
        else:
            break
    if frames == 0:
        raise damaged()
    return Container(b"".join(kept), width, height, 4, frames=frames)


def _after_blocks(data: bytes, at: int, blocks: PartCounter) -> int:
    """The position after the sub-blocks at ``at``, and after the empty one that ends them."""
    while at < len(data) and data[at]:
        at += data[at] + 1
        blocks.add()
    return at + 1


def _color_table_bytes(flags: int) -> int:
    """Size of a color table in bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
