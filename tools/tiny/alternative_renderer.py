"""A second renderer for the same scenes, built on Pillow's own shapes: for evaluation, never for training.

Shares no drawing code with ``world``: larger canvases, upright objects, pure colors, other proportions.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.tiny.world import BACKGROUNDS, Scene

__all__ = ["draw_alternative"]

_PAINT = {
    "red": "red",
    "orange": "orange",
    "yellow": "yellow",
    "green": "green",
    "blue": "blue",
    "purple": "purple",
    "pink": "hotpink",
    "brown": "saddlebrown",
}


_Point = tuple[float, float]


@dataclass(frozen=True)
class _Pen:
    """Draws one object: coordinates of ±1 around its center (x, y) are scaled to ±``radius`` pixels."""

    canvas: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    paint: str
    edge: str | None
    line: int
    ground: tuple[int, int, int]

    def at(self, points: Sequence[_Point]) -> list[_Point]:
        return [(self.x + a * self.radius, self.y + b * self.radius) for a, b in points]

    def polygon(self, *points: _Point) -> None:
        self.canvas.polygon(self.at(points), fill=self.paint, outline=self.edge, width=self.line if self.edge else 1)

    def ellipse(self, *corners: _Point) -> None:
        self.canvas.ellipse(self.at(corners), fill=self.paint, outline=self.edge, width=self.line)

    def rectangle(self, *corners: _Point) -> None:
        self.canvas.rectangle(self.at(corners), fill=self.paint, outline=self.edge, width=self.line)


def draw_alternative(scene: Scene) -> Image.Image:
    """Render a scene as an RGB image of 256 to 900 pixels (square root of its area). Deterministic."""
    rng = random.Random(f"other hands {scene.seed}")  # words: allow; this seeds published figures
    side = rng.choice((256, 400, 640, 900))
    width = round(side * math.sqrt(scene.aspect))
    height = round(side / math.sqrt(scene.aspect))
    ground = BACKGROUNDS[scene.background]
    image = Image.new("RGB", (width, height), ground)
    canvas = ImageDraw.Draw(image)
    outlined = rng.random() < 1 / 3
    edge = ("white" if scene.background == "black" else "black") if outlined else None
    for thing in scene.things:
        radius = 0.92 * thing.radius * side
        pen = _Pen(
            canvas, thing.x * width, thing.y * height, radius, _PAINT[thing.color], edge, max(2, side // 120), ground
        )
        _SHAPES[thing.kind](pen)
    return image


def _circle(pen: _Pen) -> None:
    pen.ellipse((-1, -1), (1, 1))


def _square(pen: _Pen) -> None:
    pen.rectangle((-0.85, -0.85), (0.85, 0.85))


def _triangle(pen: _Pen) -> None:
    pen.polygon((0, -1), (0.87, 0.5), (-0.87, 0.5))


def _star(pen: _Pen) -> None:
    reach = [1 if corner % 2 == 0 else 0.4 for corner in range(10)]
    pen.polygon(*((r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(reach)))


def _heart(pen: _Pen) -> None:
    pen.ellipse((-1, -0.8), (0, 0.2))
    pen.ellipse((0, -0.8), (1, 0.2))
    pen.polygon((-0.93, 0), (0.93, 0), (0, 0.95))
    pen.canvas.polygon(
        pen.at(((-0.8, -0.1), (0, -0.4), (0.8, -0.1), (0, 0.8))), fill=pen.paint
    )  # covers inner outlines


def _cross(pen: _Pen) -> None:
    w = 0.3
    arm = ((-w, -w), (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w))
    pen.polygon(*arm)


def _moon(pen: _Pen) -> None:
    pen.ellipse((-1, -1), (1, 1))
    pen.canvas.ellipse(pen.at(((-0.45, -0.95), (1.35, 0.85))), fill=pen.ground)


def _house(pen: _Pen) -> None:
    pen.rectangle((-0.7, -0.15), (0.7, 0.9))
    pen.polygon((-0.9, -0.15), (0.9, -0.15), (0, -0.95))
    pen.canvas.rectangle(pen.at(((-0.15, 0.35), (0.15, 0.9))), fill="white")


def _tree(pen: _Pen) -> None:
    pen.canvas.rectangle(pen.at(((-0.15, 0.1), (0.15, 1))), fill="saddlebrown")
    pen.ellipse((-0.7, -1), (0.7, 0.35))


def _fish(pen: _Pen) -> None:
    pen.polygon((0.4, 0), (1, -0.5), (1, 0.5))
    pen.ellipse((-1, -0.5), (0.6, 0.5))
    pen.canvas.ellipse(pen.at(((-0.7, -0.22), (-0.5, -0.02))), fill="black")


_SHAPES: dict[str, Callable[[_Pen], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
}
