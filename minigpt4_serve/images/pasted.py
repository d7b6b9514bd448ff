"""Finds encoded images in text: ``data:`` URLs, and bare base64 text whose bytes begin like an image."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from minigpt4_serve.images.data_urls import decode_base64
from minigpt4_serve.images.formats import find_format

__all__ = ["PastedImage", "find_pasted_images"]

# Every quantifier is over one class of characters, so that a search takes linear time.
_IMAGE = re.compile(
    r"data:[ \t]{0,8}(?P<type>[\w.+/-]{0,80})(?:;[ \t]{0,8}[\w.=-]{1,40}){0,4};[ \t]{0,8}base64,\s{0,16}"
    # Or the first bytes of PNG, JPEG, GIF, WEBP, TIFF, or of a HEIF container (AVIF, HEIC).
    r"|(?<![A-Za-z0-9+/_=%-])"
    r"(?:iVBORw0KGgo|/9j/|\\/9j\\/|_9j_|R0lGOD|UklGR|SUkqA|TU0AK|AAAA[A-Za-z0-9+/_-]{1,2}Z0eX)",
    re.IGNORECASE,
)
_LEAST_BARE_CHARS = 64
# Base64 in either alphabet, also percent-encoded, or with slashes escaped as in some JSON.
_LINE = re.compile(r"(?:[A-Za-z0-9+/_%-]|\\/)+={0,2}")
_BREAK = re.compile(r"[ \t]{0,16}(?:\r?\n|\\r\\n|\\n)[ \t]{0,16}")
_REST_OF_LINE = re.compile(r"[ \t]{0,16}(?:$|[\r\n]|[^\w \t.!?:-])")
_LEAST_WRAPPED_CHARS = 32


@dataclass(frozen=True)
class PastedImage:
    """An image in text. ``base64`` is as written; ``decode_base64`` reads it.

    Attributes:
        start, end: its position in the text.
    """

    start: int
    end: int
    base64: str


def find_pasted_images(text: str) -> Iterator[PastedImage]:
    """The encoded images in ``text``, in order."""
    at = 0
    while found := _IMAGE.search(text, at):
        is_url = found["type"] is not None
        start = found.end() if is_url else found.start()
        end = _end_of_base64(text, start)
        encoded = text[start:end].replace("\\r", "").replace("\\n", "").replace("\\", "")
        declared = is_url and found["type"].lower().startswith("image/")
        if end > start and (declared or (len(encoded) >= _LEAST_BARE_CHARS and _begins_like_an_image(encoded))):
            yield PastedImage(found.start(), end, encoded)
        at = max(end, found.end())


def _end_of_base64(text: str, start: int) -> int:
    """The end of base64 text that may be wrapped: into lines of the same length, but the first and the last one."""
    line = _LINE.match(text, start)
    if line is None:
        return start
    end = line.end()
    length = len(line[0])
    second = True
    while not text.startswith("=", end - 1) and (line_break := _BREAK.match(text, end)):
        line = _LINE.match(text, line_break.end())
        if line is None:
            break
        if second and len(line[0]) > length:
            length = len(line[0])
        second = False
        if length < _LEAST_WRAPPED_CHARS or len(line[0]) > length:
            break
        if len(line[0]) < length:
            # The last line: it has nothing else on it and completes a group of four characters.
            whole = len("".join(text[start : line.end()].split()).replace("\\n", "").replace("\\r", ""))
            if _REST_OF_LINE.match(text, line.end()) and (whole % 4 == 0 or line[0].endswith("=")):
                end = line.end()
            break
        end = line.end()
    return end


def _begins_like_an_image(encoded: str) -> bool:
    try:
        return find_format(decode_base64(encoded[:_LEAST_BARE_CHARS])) is not None
    except ValueError:
        return False
