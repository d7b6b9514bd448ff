"""TIFF: a directory of tags. Kept is the first image's, with the tags that describe its pixels."""

import struct

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images.containers.container import Container, damaged

__all__ = ["read_tiff"]

_WIDTH = 256
_HEIGHT = 257
_COMPRESSION = 259
_ORIENTATION = 274
_TILE_WIDTH = 322
_TILE_HEIGHT = 323
_KEPT = frozenset(
    {
        *(_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT),
        *(258, 277),  # bits, samples
        262,  # photometric interpretation
        266,  # fill order
        *(273, 278, 279, 324, 325),  # strips and tiles: offsets, rows, bytes
        284,  # planar configuration
        *(292, 293),  # options of fax compression
        *(317, 320, 332, 338, 339),  # predictor, color map, ink set, extra samples, sample format
        *(347, 529, 530, 531, 532),  # JPEG tables; YCbCr
    }
)
_CHECKED = frozenset({_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT})
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # type → as struct names it
_KINDS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # type → bytes
_MAX_TAG_BYTES = 2**19  # of one tag: offsets of 131,072 strips
_MAX_TILE_PIXELS = 2**24
# None, fax (3), LZW, JPEG, deflate (2), PackBits: what scanners, cameras and image programs write.
_FAX = (2, 3, 4)
_MAX_FAX_ROWS = 20_000  # libtiff reports damaged rows one by one on stderr
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32946, 32773})


def read_tiff(data: bytes, max_frames: int) -> Container:
    """The first page. Of several entries of one tag only the first counts, as in libtiff.

    Raises:
        InvalidImage: no size, a size that isn't an integer, an unknown compression, or a tag of more than half a
            megabyte.
    """
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    seen: set[int] = set()
    entries: dict[int, bytes] = {}
    numbers: dict[int, int] = {}  # the first value of each tag
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    for at in range(directory + 2, directory + 2 + count * 12, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", data, at)
        if tag in seen or (tag not in _KEPT and tag != _ORIENTATION):
            continue
        seen.add(tag)
        size = _KINDS.get(kind, 1) * values
        if size > _MAX_TAG_BYTES:
            raise damaged()
        where = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, at + 8)[0]
        if values and kind in _INTEGERS:
            (numbers[tag],) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", data, where)
        elif tag in _CHECKED:  # a decoder may see a number where nothing was checked
            raise damaged()
        if tag in _KEPT:
            entries[tag] = data[at : at + 12]
    compression = numbers.get(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise InvalidImage("This TIFF's compression is not supported; save it as a PNG.")
    width = numbers[_WIDTH]
    height = numbers[_HEIGHT]
    if compression in _FAX and height > _MAX_FAX_ROWS:
        raise InvalidImage(f"This TIFF has more than {_MAX_FAX_ROWS} rows; save it as a PNG.")
    if numbers.get(_TILE_WIDTH, 0) * numbers.get(_TILE_HEIGHT, 0) > _MAX_TILE_PIXELS:
        raise damaged()
    new_directory = len(data) + (len(data) & 1)
    stripped = b"".join(
        (
            data[:4],
            struct.pack(f"{order}I", new_directory),
            data[8:],
            b"\0" * (len(data) & 1),
            struct.pack(f"{order}H", len(entries)),
            *(entries[tag] for tag in sorted(entries)),
            b"\0\0\0\0",
        )
    )
    orientation = numbers.get(_ORIENTATION, 1)
    return Container(
        stripped,
        width,
        height,
        6,
        orientation if 1 <= orientation <= 8 else 1,
        frames=_count_pages(data, order, directory, max_frames + 1),
    )


def _count_pages(data: bytes, order: str, directory: int, at_most: int) -> int:
    """Directories in the chain that starts at ``directory``, counted up to ``at_most``."""
    seen: set[int] = set()
    while directory and directory not in seen and len(seen) < at_most:
        seen.add(directory)
        try:
            (count,) = struct.unpack_from(f"{order}H", data, directory)
            (directory,) = struct.unpack_from(f"{order}I", data, directory + 2 + count * 12)
        except struct.error:
            break
    return max(len(seen), 1)
