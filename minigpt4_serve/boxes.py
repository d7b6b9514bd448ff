"""MiniGPT-v2's boxes: out of its answers, as typed data, and onto the picture. Knows text and Pillow, no model.

v2 writes ``<p>phrase</p> {<left><top><right><bottom>}<delim>{…}`` with whole percents of width and height.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Box", "Grounding", "colour_phrases", "draw_boxes", "parse_groundings", "plain_text"]

_BOX = r"\{\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*\}"
_ANY_BOX = re.sub(r"\((?=-)", "(?:", _BOX)
_BOXES = rf"{_ANY_BOX}(?:\s*<delim>\s*{_ANY_BOX})*"
_GROUNDED = re.compile(rf"(?:<p>([^<]*)</p>\s*)?({_BOXES})")

# Tried once for each run of blanks: (?<!\s) and the possessive *+ keep long runs from taking quadratic time.
_BOXES_AND_BLANKS = re.compile(rf"(?<!\s)\s*+(?:<delim>\s*+)?{_BOXES}")
_TAG = re.compile(r"</?p>|<delim>")
_HALF_WRITTEN = re.compile(r"(?<!\s)\s*+(?:\{[-<>\d\s]*|</?p?|<d(?:e|el|eli|elim)?)$")

_COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075",
)  # fmt: skip
"""Told apart by most eyes, on light and dark pictures."""

_SMALLEST_SIDE = 500  # pixels; smaller pictures are enlarged, else no label can be read


@dataclass(frozen=True)
class Box:
    """A rectangle in percent of the picture: 0 ≤ left ≤ right ≤ 100 and 0 ≤ top ≤ bottom ≤ 100."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of(cls, x1: int, y1: int, x2: int, y2: int) -> "Box":
        """The box between two corners in any order, clamped to the picture: models miss the edge now and then."""
        left, right = sorted(min(max(x, 0), 100) for x in (x1, x2))
        top, bottom = sorted(min(max(y, 0), 100) for y in (y1, y2))
        return cls(left, top, right, bottom)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of a picture of that size; cut off, not rounded, as in training."""
        return (
            self.left * width // 100,
            self.top * height // 100,
            self.right * width // 100,
            self.bottom * height // 100,
        )

    def __str__(self) -> str:
        """As v2 reads and writes it; an ``[identify]`` question ends with one."""
        return f"{{<{self.left}><{self.top}><{self.right}><{self.bottom}>}}"


@dataclass(frozen=True)
class Grounding:
    """Something that the model points at: its words, if it said any, and where it is."""

    phrase: str | None
    boxes: tuple[Box, ...]


def parse_groundings(text: str) -> list[Grounding]:
    """All boxes of an answer, in order, with their phrases.

    Only v2's own notation counts; four numbers in a sentence are four numbers. HTML entities are read as what they
    stand for. What is cut off at the answer's end is left out.
    """
    found = []
    for match in _GROUNDED.finditer(html.unescape(text)):
        phrase = (match[1] or "").strip() or None
        corners = re.findall(_BOX, match[2])
        found.append(Grounding(phrase, tuple(Box.of(*map(int, corner)) for corner in corners)))
    return found


def plain_text(text: str) -> str:
    """The answer without boxes and tags, as a person reads it."""
    text = _BOXES_AND_BLANKS.sub("", html.unescape(text))
    return _TAG.sub("", text).strip()


def colour_phrases(text: str, *, finished: bool = True) -> list[tuple[str, str | None]]:
    """The answer without boxes and tags, in pieces: each phrase with the colour that ``draw_boxes`` gives its boxes.

    Other words have None for a colour. Of an answer that isn't ``finished``, notation that is half there stays hidden.
    """
    if not finished:
        text = _HALF_WRITTEN.sub("", text)
    if not (_GROUNDED.search(html.unescape(text)) or _TAG.search(text)):
        return [(text, None)] if text else []
    pieces: list[tuple[str, str | None]] = []
    text, end = html.unescape(text), 0
    for number, match in enumerate(_GROUNDED.finditer(text)):
        pieces.append((text[end : match.start()], None))
        pieces.append(((match[1] or "").strip(), _COLOURS[number % len(_COLOURS)]))
        end = match.end()
    pieces.append((text[end:], None))
    bare = [(_TAG.sub("", words), colour) for words, colour in pieces]
    return [(words, colour) for words, colour in bare if words]


def draw_boxes(image: Image.Image, groundings: Sequence[Grounding]) -> Image.Image:
    """A copy of the picture with every box in the colour of its phrase, labelled.

    Small pictures are enlarged to 500 pixels on their longer side, so that labels can be read. No label lies on another
    as long as there is room for all.
    """
    picture = image.convert("RGB")
    longer = max(picture.size)
    if longer < _SMALLEST_SIDE:
        scale = _SMALLEST_SIDE / longer
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 250)
    font = ImageFont.load_default(size=max(14, max(picture.size) // 40))
    coloured = [(g, _COLOURS[i % len(_COLOURS)]) for i, g in enumerate(groundings)]
    for grounding, colour in coloured:
        for box in grounding.boxes:
            left, top, right, bottom = box.pixels(picture.width - 1, picture.height - 1)
            # A white line around it keeps a box apart from things of its own colour.
            canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=line + 2)
            canvas.rectangle((left, top, right, bottom), outline=colour, width=line)
    taken: list[_Area] = []
    for grounding, colour in coloured:
        if grounding.phrase is None:
            continue
        for box in grounding.boxes:
            _label(canvas, picture.size, box, grounding.phrase, colour, font, taken)
    return picture


_Area = tuple[int, int, int, int]
_LONGEST_LABEL = 100  # characters


def _label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    phrase: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[_Area],
) -> None:
    """Write a phrase near its box, on a plate of the box's colour, and note the area as taken."""
    left, top, right, bottom = canvas.textbbox((0, 0), "A", font)
    margin = max(3, int(bottom - top) // 3)
    area = box.pixels(*size)
    # As wide as its box, or half the picture: a sentence must not hide what it is about.
    limit = max(area[2] - area[0], size[0] // 2) - 2 * margin
    if len(phrase) > _LONGEST_LABEL:
        phrase = phrase[:_LONGEST_LABEL].rstrip() + "…"
    while len(phrase) > 1 and canvas.textlength(phrase, font) > limit:
        phrase = phrase[:-2].rstrip() + "…"
    left, top, right, bottom = canvas.textbbox((0, 0), phrase, font)
    width, height = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
    x, y = next(_free_places(area, (width, height), size, taken))
    taken.append((x, y, x + width, y + height))
    canvas.rectangle(taken[-1], fill=colour)
    canvas.text((x + margin - left, y + margin - top), phrase, fill="white", font=font)


def _free_places(
    box: _Area, label: tuple[int, int], size: tuple[int, int], taken: Sequence[_Area]
) -> Iterator[tuple[int, int]]:
    """Upper left corners for a label, best first: above the box, in it, below it, then ever farther away."""
    (left, top, _, bottom), (width, height) = box, label
    room = max(size[0] - width, 0), max(size[1] - height, 0)

    def free(x: int, y: int) -> bool:
        return not any(x < r and a < x + width and y < b and t < y + height for a, t, r, b in taken)

    places = [(left, top - height), (left, top), (left, bottom)]
    inside = [(min(max(x, 0), room[0]), min(max(y, 0), room[1])) for x, y in places]
    yield from (place for place in inside if free(*place))
    columns, rows = range(0, room[0] + 1, max(width // 4, 8)), range(0, room[1] + 1, max(height // 2, 8))
    grid = [(x, y) for y in rows for x in columns if free(x, y)]
    yield from sorted(grid, key=lambda place: abs(place[0] - left) + abs(place[1] - top))
    yield inside[0]
