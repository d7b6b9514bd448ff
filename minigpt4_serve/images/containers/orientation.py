"""The orientation in EXIF and XMP data. Nothing else is read of them, and data that can't be read is ignored.

Only the first directory is read, entry by entry: directories of crafted files have thousands of entries that claim the
same bytes, and a library that copies each entry's bytes needs gigabytes for them.
"""

import re
import struct

__all__ = ["exif_orientation", "xmp_orientation"]

_TAG = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG as struct names them; EXIF 2.3 demands SHORT, not all write it
_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]")
_MAX_XMP = 2**16


def exif_orientation(exif: bytes) -> int | None:
    """The orientation (1 to 8) of EXIF data, with or without its prefix ``Exif\\0\\0``; None if it has none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if tiff[:4] == b"II*\0":
        order = "<"
    elif tiff[:4] == b"MM\0*":
        order = ">"
    else:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for at in range(directory + 2, min(directory + 2 + count * 12, len(tiff) - 11), 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, at)
            if tag == _TAG:
                if kind not in _INTEGERS or values != 1:
                    return None
                (value,) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", tiff, at + 8)
                return value if 1 <= value <= 8 else None
    except struct.error:
        pass
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    """The orientation (1 to 8) in the first 64 KiB of XMP data; None if there is none."""
    found = _XMP.search(xmp, 0, _MAX_XMP)
    return int(found[1]) if found else None
