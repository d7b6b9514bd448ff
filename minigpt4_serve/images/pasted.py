"""Finds encoded images in text: ``data:`` URLs and bare base64, as people paste them and as tools return them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from minigpt4_serve.images.data_urls import decode_base64
from minigpt4_serve.images.formats import find_format

__all__ = ["PastedImage", "find_pasted_images"]

# Both alphabets of base64, with what JSON and URLs write for / and +.
_BASE64 = r"(?:[A-Za-z0-9+/_-]|\\/|%2[BbFf])"
_RUN = re.compile(rf"{_BASE64}++")
_START = re.compile(
    r"(?P<header>data:[ \t]{0,8}+(?P<type>[\w.+/-]{0,100}+)(?:;[ \t]{0,8}+[\w.=-]{0,100}+){0,10};[ \t]{0,8}+base64,"
    r"(?:\s|\\[nr]|%0[AaDd]|%20){0,8}+)"
    rf"|(?<![A-Za-z0-9+/_-]){_BASE64}{{40,}}+",
    re.IGNORECASE,
)
_PADDING = re.compile(r"(?:=|%3d|\\u003d){1,2}", re.IGNORECASE)
_LINE_BREAK = re.compile(r"(?:\r\n|\r|\n|\\r\\n|\\n|%0d%0a|%0a)[ \t]{0,8}+", re.IGNORECASE)
_LINE_END = re.compile(r"[\r\n\"'`)\]}>%\\]|$")

_MIN_LINE = 20
_MAX_LINE = 128  # characters; MIME wraps at 76, PEM at 64. Longer lines aren't wrapped.
_HEAD = 64  # characters of base64 that contain any format's signature


@dataclass(frozen=True)
class PastedImage:
    """An image's place in a text.

    Attributes:
        start, end: of all that stands for it, with the header of a ``data:`` URL.
        base64: as written, without the escapes of JSON; ``decode_base64`` reads it.
    """

    start: int
    end: int
    base64: str


def find_pasted_images(text: str) -> Iterator[PastedImage]:
    """The images in a text, in order.

    A ``data:`` URL counts if its media type is an image's or its data begins like an image; bare base64 only by its
    beginning, from 40 characters on. Both may be wrapped into lines, percent-encoded, escaped as in JSON, in the
    URL-safe alphabet, and without padding. Takes time in proportion to the text.
    """
    position = 0
    while found := _START.search(text, position):
        header = found["header"] is not None
        start = found.end() if header else found.start()
        if not header and text[start - 1 : start] == "\\":
            start += 1  # the n of an escaped line break
        run = _RUN.match(text, start)
        if run is None:
            position = found.end()
            continue
        declared = (found["type"] or "").lower().startswith("image/")
        # The first line decides, so that no line is read twice.
        if not declared and not _begins_like_an_image(_without_escapes(run[0][: 3 * _HEAD])):
            # A run may end in the first word of a header.
            ends_in_data = run[0][-4:].lower() == "data" and run.end() - 4 > found.start()
            position = run.end() - 4 if ends_in_data else run.end()
            continue
        position = _end_of_payload(text, run)
        payload = _without_escapes(text[start:position])
        if declared or not _is_two_letters_only(payload):
            yield PastedImage(found.start() if header else start, position, payload)


def _end_of_payload(text: str, first: re.Match[str]) -> int:
    """Where base64 ends that begins with the run ``first``.

    It goes on after a line break while lines are equally long; the first may be shorter, because it shares its line
    with the header, and so may the last. If the data needs no padding and fills its lines, a word in a line of its own
    after them counts as another line.
    """
    end = first.end()
    width = _length(first)
    longest = _MAX_LINE
    while True:
        if padding := _PADDING.match(text, end):
            return padding.end()
        line_break = _LINE_BREAK.match(text, end)
        line = _RUN.match(text, line_break.end()) if line_break else None
        if line is None or not _MIN_LINE <= width <= _MAX_LINE:
            return end
        length = _length(line)
        padding = _PADDING.match(text, line.end())
        if length > longest or not (padding or _LINE_END.match(text, line.end())):
            return end
        end = line.end()
        if length < width:
            return padding.end() if padding else end
        longest = length
        width = length


def _length(run: re.Match[str]) -> int:
    """Characters of base64; an escaped one counts once."""
    return len(run[0]) - 2 * run[0].count("%") - run[0].count("\\")


def _without_escapes(written: str) -> str:
    """Without JSON's escapes."""
    if "\\" not in written:
        return written
    return written.replace("\\/", "/").replace("\\n", "").replace("\\r", "").replace("\\u003d", "=")


def _begins_like_an_image(payload: str) -> bool:
    return find_format(_decode_head(payload)) is not None


def _is_two_letters_only(payload: str) -> bool:
    """Whether all that makes it an image is BMP's signature, two letters, and not the file size that follows them."""
    head = _decode_head(payload)
    if not head.startswith(b"BM"):
        return False
    try:
        return int.from_bytes(head[2:6], "little") != len(decode_base64(payload))
    except ValueError:
        return True


def _decode_head(payload: str) -> bytes:
    """The first bytes; none if it isn't base64."""
    head = unquote(payload[: 3 * _HEAD])[:_HEAD].rstrip("=")
    try:
        return decode_base64("".join(head[: len(head) // 4 * 4].split()))
    except ValueError:
        return b""
