"""The frame size in AV1 data, which may be larger than the container says, and which decoders allocate.

Source: AV1 Bitstream & Decoding Process Specification, 5.3 (OBU syntax) and 5.5 (sequence header).
"""

from minigpt4_serve.images.containers.container import PartCounter, damaged

__all__ = ["read_av1_sizes"]

_SEQUENCE_HEADER = 1


def read_av1_sizes(data: bytes, parts: PartCounter) -> list[tuple[int, int]]:
    """The largest width and height of frames, of each sequence header in the data of an image."""
    sizes: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        parts.add()
        header = data[at]
        at += 2 if header & 4 else 1  # with an extension
        size = len(data) - at
        if header & 2:
            size, at = _leb128(data, at)
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            sizes.append(_frame_size(_Bits(data[at : at + min(size, 256)])))
        at += size
    return sizes


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and the position after it."""
    value = 0
    for index in range(8):
        value |= (data[at + index] & 127) << 7 * index
        if not data[at + index] & 128:
            return value, at + index + 1
    raise damaged()


class _Bits:
    """Reads bits from the highest to the lowest."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise damaged()
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self.read(1):
            zeros += 1
        self.read(zeros)


def _frame_size(bits: _Bits) -> tuple[int, int]:
    bits.read(4)  # profile, still picture
    if bits.read(1):  # the short header of a still picture
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits = bits.read(4) + 1
    height_bits = bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):
            bits.skip_uvlc()
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
