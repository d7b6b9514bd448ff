"""Bounding boxes in MiniGPT-v2's answers: parse them, remove them from the text, and draw them on the image.

v2 writes ``<p>phrase</p> {<left><top><right><bottom>}<delim>{…}``, in integer percent of width and height.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Box", "Grounding", "colour_phrases", "draw_boxes", "parse_groundings", "plain_text"]

_BOX = r"\{\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*\}"
_ANY_BOX = re.sub(r"\((?=-)", "(?:", _BOX)
_BOXES = rf"{_ANY_BOX}(?:\s*<delim>\s*{_ANY_BOX})*"
_GROUNDED = re.compile(rf"(?:<p>([^<]*)</p>\s*)?({_BOXES})")

# (?<!\s) and the possessive *+ try each run of whitespace once, so long runs take linear time.
_BOXES_AND_SPACES = re.compile(rf"(?<!\s)\s*+(?:<delim>\s*+)?{_BOXES}")
_TAG = re.compile(r"</?p>|<delim>")
_PARTIAL_NOTATION = re.compile(r"(?<!\s)\s*+(?:\{[-<>\d\s]*|</?p?|<d(?:e|el|eli|elim)?)$")

_COLORS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075",
)  # fmt: skip
"""Distinguishable for most people, on light and dark images."""

_MAX_DRAWN = 500
_MAX_LABELS = 30
_MIN_LONGER_SIDE = 500  # pixels; smaller images are enlarged so that labels are readable


@dataclass(frozen=True)
class Box:
    """A rectangle in percent of the image's size: 0 ≤ left ≤ right ≤ 100 and 0 ≤ top ≤ bottom ≤ 100."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of(cls, x1: int, y1: int, x2: int, y2: int) -> "Box":
        """The box between two opposite corners, clamped to the image, since models exceed its edge sometimes."""
        left, right = sorted(min(max(x, 0), 100) for x in (x1, x2))
        top, bottom = sorted(min(max(y, 0), 100) for y in (y1, y2))
        return cls(left, top, right, bottom)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of an image of that size; rounded down, as in the original."""
        return (
            self.left * width // 100,
            self.top * height // 100,
            self.right * width // 100,
            self.bottom * height // 100,
        )

    def __str__(self) -> str:
        """In v2's notation, which ``[identify]`` questions use as well."""
        return f"{{<{self.left}><{self.top}><{self.right}><{self.bottom}>}}"


@dataclass(frozen=True)
class Grounding:
    """A phrase of an answer, if there is one, and its boxes."""

    phrase: str | None
    boxes: tuple[Box, ...]


def parse_groundings(text: str) -> list[Grounding]:
    """All boxes of an answer, in order, with their phrases.

    Only v2's notation is parsed, not any four numbers. HTML entities are decoded. An incomplete box at the end of a
    truncated answer is ignored.
    """
    found = []
    for match in _GROUNDED.finditer(html.unescape(text)):
        phrase = (match[1] or "").strip() or None
        corners = re.findall(_BOX, match[2])
        found.append(Grounding(phrase, tuple(Box.of(*map(int, corner)) for corner in corners)))
    return found


def plain_text(text: str) -> str:
    """The answer without boxes and tags."""
    text = _BOXES_AND_SPACES.sub("", html.unescape(text))
    return _TAG.sub("", text).strip()


def colour_phrases(text: str, *, finished: bool = True) -> list[tuple[str, str | None]]:
    """The answer without boxes and tags, as segments (text, color).

    Phrases have the color that ``draw_boxes`` gives their boxes, other text has None. Unless the answer is
    ``finished``, incomplete notation at its end is removed.
    """
    if not finished:
        text = _PARTIAL_NOTATION.sub("", text)
    if not (_GROUNDED.search(html.unescape(text)) or _TAG.search(text)):
        return [(text, None)] if text else []
    text = html.unescape(text)
    segments: list[tuple[str, str | None]] = []
    end = 0
    for number, match in enumerate(_GROUNDED.finditer(text)):
        segments.append((text[end : match.start()], None))
        segments.append(((match[1] or "").strip(), _COLORS[number % len(_COLORS)]))
        end = match.end()
    segments.append((text[end:], None))
    without_tags = [(_TAG.sub("", segment), color) for segment, color in segments]
    return [(segment, color) for segment, color in without_tags if segment]


def draw_boxes(image: Image.Image, groundings: Sequence[Grounding]) -> Image.Image:
    """A copy of the image with all boxes, labeled, one color per phrase.

    Small images are enlarged to 500 pixels on their longer side, so that labels are readable. Labels don't overlap
    while there is free space. The first 500 boxes are drawn, the first 30 have labels: each label is compared with all
    others.
    """
    drawn = image.convert("RGB")
    longer = max(drawn.size)
    if longer < _MIN_LONGER_SIDE:
        scale = _MIN_LONGER_SIDE / longer
        size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
        drawn = drawn.resize(size, Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(drawn)
    line = max(2, max(drawn.size) // 250)
    font = ImageFont.load_default(size=max(14, max(drawn.size) // 40))
    colored = [(g.phrase, box, _COLORS[i % len(_COLORS)]) for i, g in enumerate(groundings) for box in g.boxes]
    for _, box, color in colored[:_MAX_DRAWN]:
        left, top, right, bottom = box.pixels(drawn.width - 1, drawn.height - 1)
        # A white outline separates the box from objects of the same color.
        canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=line + 2)
        canvas.rectangle((left, top, right, bottom), outline=color, width=line)
    occupied: list[_Area] = []
    labeled = [(phrase, box, color) for phrase, box, color in colored[:_MAX_DRAWN] if phrase is not None]
    for phrase, box, color in labeled[:_MAX_LABELS]:
        _draw_label(canvas, drawn.size, box, phrase, color, font, occupied)
    return drawn


_Area = tuple[int, int, int, int]
_MAX_LABEL = 100  # characters


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    phrase: str,
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    occupied: list[_Area],
) -> None:
    """Draw a phrase near its box, on a background of the box's color, and add its area to ``occupied``."""
    left, top, right, bottom = canvas.textbbox((0, 0), "A", font)
    margin = max(3, int(bottom - top) // 3)
    area = box.pixels(*size)
    # At most as wide as its box or half the image, so that a long phrase doesn't cover the object.
    limit = max(area[2] - area[0], size[0] // 2) - 2 * margin
    if len(phrase) > _MAX_LABEL:
        phrase = phrase[:_MAX_LABEL].rstrip() + "…"
    while len(phrase) > 1 and canvas.textlength(phrase, font) > limit:
        phrase = phrase[:-2].rstrip() + "…"
    left, top, right, bottom = canvas.textbbox((0, 0), phrase, font)
    width = int(right - left) + 2 * margin
    height = int(bottom - top) + 2 * margin
    x, y = _label_position(area, (width, height), size, occupied)
    occupied.append((x, y, x + width, y + height))
    canvas.rectangle(occupied[-1], fill=color)
    canvas.text((x + margin - left, y + margin - top), phrase, fill="white", font=font)


def _label_position(
    box: _Area, label: tuple[int, int], size: tuple[int, int], occupied: Sequence[_Area]
) -> tuple[int, int]:
    """Upper left corner for a label: above the box, inside or below it, or else the nearest position that is free.

    Without a free position, labels overlap.
    """
    left, top, _, bottom = box
    width, height = label
    max_x = max(size[0] - width, 0)
    max_y = max(size[1] - height, 0)

    def is_free(x: int, y: int) -> bool:
        return not any(x < r and a < x + width and y < b and t < y + height for a, t, r, b in occupied)

    preferred = [
        (min(max(x, 0), max_x), min(max(y, 0), max_y)) for x, y in ((left, top - height), (left, top), (left, bottom))
    ]
    for position in preferred:
        if is_free(*position):
            return position
    columns = range(0, max_x + 1, max(width // 4, 8))
    rows = range(0, max_y + 1, max(height // 2, 8))
    grid = [(x, y) for y in rows for x in columns if is_free(x, y)]
    return min(grid, key=lambda position: abs(position[0] - left) + abs(position[1] - top), default=preferred[0])
