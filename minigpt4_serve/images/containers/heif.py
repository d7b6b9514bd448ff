"""HEIF, the container of HEIC and AVIF: boxes. Metadata and further kinds of items are disabled in place.

Positions in the file are absolute, so nothing is cut out: what decoders must not read gets another name.
"""

import struct
from collections.abc import Iterator

from minigpt4_serve.images.containers.av1 import read_av1_sizes
from minigpt4_serve.images.containers.container import Container, PartCounter, damaged

__all__ = ["read_avif", "read_heic"]

_MAX_BOXES = 4096  # a photo of 50 million pixels in tiles of 512² has about 200 items
_NOT_SEQUENCES = {b"avis": b"avif", b"msf1": b"mif1", b"hevc": b"heic", b"hevx": b"heix"}
_CODED = (b"hvc1", b"av01")
_GRID = b"grid"
_DISABLED = b"none"
# Measured with Pillow 12.3 and pillow-heif 1.8: planes of up to 16 bits, the same as RGB, and the image.
_AVIF_BYTES_PER_PIXEL = 13
_HEIC_BYTES_PER_PIXEL = 11

Box = tuple[bytes, int, int, int]  # type, its position, begin and end of the content


def read_avif(data: bytes, max_frames: int) -> Container:
    """The primary image; the sequence of an animation is left out.

    Raises:
        InvalidImage: no image, or too many boxes, items or extents.
    """
    return _read(data, _AVIF_BYTES_PER_PIXEL)


def read_heic(data: bytes, max_frames: int) -> Container:
    """As ``read_avif``."""
    return _read(data, _HEIC_BYTES_PER_PIXEL)


def _read(data: bytes, bytes_per_pixel: float) -> Container:
    changed = bytearray(data)
    boxes = PartCounter(_MAX_BOXES)
    meta: Box | None = None
    for kind, name, begin, end in _boxes(data, 0, len(data), boxes):
        if kind == b"ftyp":
            for at in range(begin, end - 3, 4):
                changed[at : at + 4] = _NOT_SEQUENCES.get(data[at : at + 4], data[at : at + 4])
        elif kind == b"moov":
            changed[name : name + 4] = b"free"
        elif kind == b"meta" and meta is None:
            meta = (kind, name, begin, end)
    if meta is None:
        raise damaged()
    width, height = max(_image_sizes(data, changed, meta, boxes), key=lambda size: size[0] * size[1])
    return Container(bytes(changed), width, height, bytes_per_pixel)


def _image_sizes(data: bytes, changed: bytearray, meta: Box, boxes: PartCounter) -> list[tuple[int, int]]:
    """Width and height of every image and grid of images; items of other kinds are disabled in ``changed``.

    Raises:
        InvalidImage: there is none.
    """
    sizes: list[tuple[int, int]] = []
    items: dict[int, bytes] = {}
    locations: dict[int, list[tuple[int, int, int]]] = {}
    item_data = 0
    for kind, _, begin, end in _boxes(data, meta[2] + 4, meta[3], boxes):
        if kind == b"iinf":
            items = _disable_items(data, changed, begin, end, boxes)
        elif kind == b"iloc":
            locations = _read_locations(data, begin, boxes)
        elif kind == b"idat":
            item_data = begin
        elif kind == b"iprp":
            for properties, _, inner, inner_end in _boxes(data, begin, end, boxes):
                if properties == b"ipco":
                    sizes += _read_sizes(data, inner, inner_end, boxes)
    for item, kind in items.items():
        extents = locations.get(item, [])
        starts = [offset + (item_data if method == 1 else 0) for method, offset, _ in extents]
        content = b"".join(
            data[start : start + length if length else None]
            for start, (_, _, length) in zip(starts, extents, strict=True)
        )
        if kind == _GRID:
            sizes.append(_grid_size(content))
        elif kind == b"av01":
            sizes += read_av1_sizes(content, boxes)
    if not sizes:
        raise damaged()
    return sizes


def _boxes(data: bytes, at: int, end: int, boxes: PartCounter) -> Iterator[Box]:
    while at + 8 <= end:
        boxes.add()
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        stop = end if size == 0 else at + size
        if stop > end or stop < begin:
            raise damaged()
        yield kind, at + 4, begin, stop
        at = stop


def _disable_items(data: bytes, changed: bytearray, begin: int, end: int, boxes: PartCounter) -> dict[int, bytes]:
    """Rename all items that aren't coded images or grids of such; return the types of the others by their ids."""
    kept: dict[int, bytes] = {}
    begin += 6 if data[begin] == 0 else 8  # version, flags and the number of entries
    for kind, _, inner, _ in _boxes(data, begin, end, boxes):
        if kind != b"infe":
            continue
        version = data[inner]
        at = inner + (10 if version >= 3 else 8)
        name = data[at : at + 4]
        if version < 2:
            raise damaged()
        if name == _GRID or name in _CODED:
            kept[int.from_bytes(data[inner + 4 : inner + (8 if version >= 3 else 6)], "big")] = name
        else:
            changed[at : at + 4] = _DISABLED
    return kept


def _read_locations(data: bytes, at: int, boxes: PartCounter) -> dict[int, list[tuple[int, int, int]]]:
    """Each item's extents: construction method, offset and length.

    Raises:
        InvalidImage: extents that are together larger than the file.
    """
    version = data[at]
    sizes = int.from_bytes(data[at + 4 : at + 6], "big")
    offset_size = sizes >> 12
    length_size = sizes >> 8 & 15
    base_size = sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    at += 6
    id_size = 4 if version >= 2 else 2

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(data):
            raise damaged()
        return int.from_bytes(data[at - size : at], "big")

    locations: dict[int, list[tuple[int, int, int]]] = {}
    total = 0
    for _ in range(number(id_size)):
        boxes.add()
        item = number(id_size)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base = number(base_size)
        for _ in range(number(2)):
            boxes.add()
            number(index_size)
            offset = base + number(offset_size)
            length = number(length_size)
            total += length or len(data)  # an extent without a length is the whole file
            locations.setdefault(item, []).append((method, offset, length))
    if total > 2 * len(data):
        raise damaged()
    return locations


def _read_sizes(data: bytes, at: int, end: int, boxes: PartCounter) -> Iterator[tuple[int, int]]:
    for kind, _, begin, _ in _boxes(data, at, end, boxes):
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", data, begin + 4)
            yield width, height


def _grid_size(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II" if content[1] & 1 else ">HH", content, 4)
    return width, height
