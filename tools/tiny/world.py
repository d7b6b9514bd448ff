"""The synthetic domain of the embedded model: scenes of a few colored shapes, and the renderer that draws them.

``python -m tools.tiny.world sheet.png`` draws a sheet of random scenes.
"""

import io
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "COLUMNS",
    "KINDS",
    "ROWS",
    "SIDE",
    "Scene",
    "Thing",
    "dense_scene",
    "draw",
    "example",
    "scene",
]

SIDE = 112
"""Width and height of the model's input image in pixels."""

KINDS = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "house", "tree", "fish")
COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (225, 30, 35), (205, 10, 20)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 125, 20)),
    "yellow": ((255, 255, 0), (250, 220, 40), (240, 230, 30)),
    "green": ((0, 128, 0), (40, 170, 60), (0, 200, 30), (20, 110, 40)),
    "blue": ((0, 0, 255), (30, 90, 220), (40, 60, 180), (60, 130, 240)),
    "purple": ((128, 0, 128), (140, 50, 200), (110, 40, 160)),
    "pink": ((255, 192, 203), (255, 105, 180), (250, 150, 190)),
    "brown": ((139, 69, 19), (150, 90, 50), (120, 65, 30), (165, 42, 42)),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (160, 160, 160),
    "black": (10, 10, 10),
    "beige": (240, 226, 190),
}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
STYLES = ("flat", "outlined", "hollow")
"""Outlined: a dark line around the shape; hollow: a colored line and no fill."""
_STYLE_SHARES = (6, 3, 0.6)
"""Relative frequencies of the styles."""
_EDGE = 2 / SIDE
"""A center nearer than this to the border between two thirds of the image has an ambiguous place."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        kind: one of ``KINDS``.
        color: one of ``COLORS``.
        x, y: center, as fractions of the image's width and height.
        radius: as a fraction of the image's mean side (the square root of its area).
        rotation: clockwise, in degrees.
        style: one of ``STYLES``.
    """

    kind: str
    color: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0
    style: str = "flat"

    @property
    def row(self) -> str:
        """The third of the image, from top to bottom, that holds the center: one of ``ROWS``."""
        return ROWS[min(2, int(self.y * 3))]

    @property
    def column(self) -> str:
        """The third of the image, from left to right, that holds the center: one of ``COLUMNS``."""
        return COLUMNS[min(2, int(self.x * 3))]

    @property
    def has_unambiguous_place(self) -> bool:
        """Whether the center is clearly inside one row and one column."""
        return all(abs(value - border) > _EDGE for value in (self.x, self.y) for border in (1 / 3, 2 / 3))


@dataclass(frozen=True)
class Scene:
    """Objects on a background. Their order is the order in which answers list them.

    Attributes:
        background: one of ``BACKGROUNDS``.
        aspect: width divided by height of the rendered image.
        noise: strength of the gray pixel noise: standard deviation in gray levels before it is blended in.
        blurred: whether the image is blurred.
        seed: of the renderer's choices (shades, proportions, line widths, noise).
    """

    things: tuple[Thing, ...]
    background: str
    aspect: float = 1.0
    noise: float = 0.0
    blurred: bool = False
    seed: int = field(default=0, compare=False)


def scene(rng: random.Random, *, most: int = 4) -> Scene:
    """A random scene of one to ``most`` objects that don't overlap."""
    count = rng.choice(range(1, most + 1))
    aspect = 1.0 if rng.random() < 0.4 else math.exp(rng.uniform(-0.45, 0.45))
    # a radius of 1 as fractions of the width and the height
    across = 1 / math.sqrt(aspect)
    down = math.sqrt(aspect)
    style = rng.choices(STYLES, _STYLE_SHARES)[0]
    things: list[Thing] = []
    few_kinds = rng.sample(KINDS, rng.choice((1, 2))) if rng.random() < 0.25 else KINDS
    few_colors = rng.sample(tuple(COLORS), rng.choice((1, 2))) if rng.random() < 0.25 else tuple(COLORS)
    certain = rng.random() < 0.85
    largest = {1: 0.38, 2: 0.27, 3: 0.22, 4: 0.2}.get(count, 0.16)
    for _ in range(count):
        for _ in range(60):
            radius = rng.uniform(0.09, largest)
            x, y = (rng.uniform(0.01 + radius * reach, 0.99 - radius * reach) for reach in (across, down))
            thing = Thing(rng.choice(few_kinds), rng.choice(few_colors), x, y, radius, _rotation(rng), style)
            apart = all(math.hypot((x - o.x) / across, (y - o.y) / down) > 1.05 * (radius + o.radius) for o in things)
            if apart and (thing.has_unambiguous_place or not certain):
                things.append(thing)
                break
    return Scene(
        tuple(things),
        rng.choices(tuple(BACKGROUNDS), (5, 2, 2, 2))[0],
        aspect=aspect,
        noise=rng.choice((0, 0, 4, 9)),
        blurred=rng.random() < 0.1,
        seed=rng.getrandbits(32),
    )


def dense_scene(rng: random.Random) -> Scene:
    """A dense scene of sixteen objects, one in each cell of a 4 × 4 grid.

    Vision training starts with these: every region of the image carries a target. Hollow and upside-down objects, which
    are rare in ordinary scenes, are frequent here.
    """
    style = rng.choices(STYLES, (6, 3, 2))[0]
    things = tuple(
        Thing(
            rng.choice(KINDS),
            rng.choice(tuple(COLORS)),
            (column + 0.5 + rng.uniform(-0.1, 0.1)) / 4,
            (row + 0.5 + rng.uniform(-0.1, 0.1)) / 4,
            rng.uniform(0.075, 0.115),
            _rotation(rng, any_angle=0.4),
            style,
        )
        for row in range(4)
        for column in range(4)
    )
    return Scene(things, rng.choice(tuple(BACKGROUNDS)), noise=rng.choice((0, 4)), seed=rng.getrandbits(32))


def _rotation(rng: random.Random, *, any_angle: float = 0.12) -> float:
    return rng.uniform(-24, 24) if rng.random() < 1 - any_angle else rng.uniform(-180, 180)


# --- drawing ---------------------------------------------------------------------------------------------------------

_Points = list[tuple[float, float]]


def _ellipse(x: float, y: float, width: float, height: float, start: float = 0, end: float = 360) -> _Points:
    steps = max(6, int((end - start) / 10))
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


def _star(rng: random.Random) -> _Points:
    inner = rng.uniform(0.38, 0.5)
    radii = [1.08 if i % 2 == 0 else inner for i in range(10)]
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _heart(rng: random.Random) -> _Points:
    points = []
    for i in range(36):
        t = 2 * math.pi * i / 36
        points.append(
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15,
            )
        )
    return points


def _cross(rng: random.Random) -> _Points:
    w = rng.uniform(0.24, 0.38)
    quarter = [(w, -1), (w, -w), (1, -w), (1, w)]
    points: _Points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _moon(rng: random.Random) -> _Points:
    outer = _ellipse(0, 0, 1, 1, 55, 305)
    tip = math.radians(55)
    x = math.cos(tip)
    y = math.sin(tip)
    depth = rng.uniform(0.15, 0.45)  # how far left the inner arc bulges
    inner = [(x - (x + depth) * math.sin(math.pi * i / 16), -y + 2 * y * i / 16) for i in range(1, 16)]
    return [(px + 0.15, py) for px, py in outer + inner]


def _triangle(rng: random.Random) -> _Points:
    wide = rng.uniform(0.8, 1.0)
    high = rng.uniform(0.85, 1.05)
    return [(rng.uniform(-0.12, 0.12), -high), (wide, high * 0.8), (-wide, high * 0.8)]


def _square(rng: random.Random) -> _Points:
    w = rng.uniform(0.78, 0.92)
    h = rng.uniform(0.78, 0.92)
    return [(-w, -h), (w, -h), (w, h), (-w, h)]


_Part = tuple[_Points, str]
"""A polygon and its fill: ``own`` (the object's color), ``dark``, ``light`` or ``bark``."""


def _house(rng: random.Random) -> list[_Part]:
    w = rng.uniform(0.65, 0.8)
    eaves = rng.uniform(-0.3, -0.1)
    over = rng.choice((0.0, 0.15))
    body: _Points = [(-w, 0.95), (-w, eaves), (-w - over, eaves), (0, -1), (w + over, eaves), (w, eaves), (w, 0.95)]
    parts: list[_Part] = [(body, "own")]
    if rng.random() < 0.75:
        parts.append(([(-0.16, 0.95), (-0.16, 0.35), (0.16, 0.35), (0.16, 0.95)], rng.choice(("dark", "light"))))
    if rng.random() < 0.4:
        parts += [([(s, 0), (s + 0.24, 0), (s + 0.24, 0.24), (s, 0.24)], "light") for s in (-0.52, 0.28)]
    return parts


def _tree(rng: random.Random) -> list[_Part]:
    trunk: _Points = [(-0.15, 0.2), (0.15, 0.2), (0.15, 1), (-0.15, 1)]
    shape = rng.choice(("round", "fir", "fir", "cloud"))
    if shape == "round":
        crown = [_ellipse(0, -0.3, 0.68, 0.7)]
    elif shape == "cloud":
        crown = [_ellipse(-0.35, -0.1, 0.42, 0.4), _ellipse(0.35, -0.1, 0.42, 0.4), _ellipse(0, -0.55, 0.48, 0.45)]
    else:
        crown = [[(0, -1), (0.55, -0.2), (-0.55, -0.2)], [(0, -0.55), (0.75, 0.5), (-0.75, 0.5)]]
    return [(trunk, rng.choice(("bark", "bark", "own"))), *((points, "own") for points in crown)]


def _fish(rng: random.Random) -> list[_Part]:
    tail = rng.uniform(0.38, 0.5)
    body = _ellipse(-0.2, 0, 0.75, rng.uniform(0.42, 0.55))
    parts: list[_Part] = [([(0.35, 0), (1, -tail), (1, tail)], "own"), (body, "own")]
    if rng.random() < 0.8:
        parts.append((_ellipse(-0.55, -0.12, 0.09, 0.09), rng.choice(("dark", "light"))))
    return parts


_SIMPLE: dict[str, Callable[[random.Random], _Points]] = {
    "circle": lambda rng: _ellipse(0, 0, 0.95, rng.uniform(0.88, 1.0)),
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
}
_COMPOSED: dict[str, Callable[[random.Random], list[_Part]]] = {"house": _house, "tree": _tree, "fish": _fish}


def _parts(kind: str, rng: random.Random) -> list[_Part]:
    """Polygons in the square -1 … 1, y downwards."""
    if kind in _SIMPLE:
        return [(_SIMPLE[kind](rng), "own")]
    parts = _COMPOSED[kind](rng)
    if rng.random() < 0.5:
        parts = [([(-x, y) for x, y in points], paint) for points, paint in parts]
    return parts


def example() -> Scene:
    """The scene of the example image that ships with the model."""
    things = (
        Thing("star", "red", 0.24, 0.3, 0.17, 8),
        Thing("moon", "yellow", 0.8, 0.22, 0.12, 0),
        Thing("house", "blue", 0.72, 0.7, 0.24, 0),
    )
    return Scene(things, "white", aspect=4 / 3, seed=4)


def draw(scene: Scene, side: int | None = None) -> Image.Image:
    """Render a scene as an RGB image. Deterministic: equal scenes with equal seeds give equal pixels.

    Args:
        side: square root of the image's area in pixels; 128, 160 or 224, by the scene's seed, if not given.
    """
    rng = random.Random(scene.seed)
    chosen = rng.choice((128, 160, 224))
    side = side or chosen
    width = round(side * math.sqrt(scene.aspect))
    height = round(side / math.sqrt(scene.aspect))
    ground = _near(rng, BACKGROUNDS[scene.background], 6)
    image = Image.new("RGB", (width, height), ground)
    canvas = ImageDraw.Draw(image)
    dark = (20, 20, 20) if scene.background != "black" or rng.random() < 0.2 else (235, 235, 235)
    line = rng.uniform(0.012, 0.03) * side
    for thing in scene.things:
        _draw_thing(canvas, thing, (width, height), ground, dark, line, rng)
    if scene.blurred:
        image = image.filter(ImageFilter.GaussianBlur(side / 224))
    if rng.random() < 0.15:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(40, 90))
        image = Image.open(file).convert("RGB")
    if scene.noise:
        image = Image.blend(image, _gray_noise(scene, image.size), 0.12)
    return image


def _gray_noise(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """Gaussian noise around middle gray, from the scene's seed (``Image.effect_noise`` can't be seeded)."""
    width, height = size
    noise = np.random.default_rng(scene.seed).normal(128, 2 * scene.noise, (height, width))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8)).convert("RGB")


def _draw_thing(
    canvas: ImageDraw.ImageDraw,
    thing: Thing,
    size: tuple[int, int],
    ground: tuple[int, int, int],
    dark: tuple[int, int, int],
    line: float,
    rng: random.Random,
) -> None:
    own = _near(rng, rng.choice(COLORS[thing.color]), 10)
    paints = {
        "own": own,
        "dark": (60, 40, 30),
        "light": (250, 245, 235),
        "bark": (110, 70, 40),
    }
    cos = math.cos(math.radians(thing.rotation))
    sin = math.sin(math.radians(thing.rotation))
    radius = thing.radius * math.sqrt(size[0] * size[1])
    shape = random.Random(rng.getrandbits(32))
    for points, paint in _parts(thing.kind, shape):
        placed = [
            (
                thing.x * size[0] + radius * (x * cos - y * sin),
                thing.y * size[1] + radius * (x * sin + y * cos),
            )
            for x, y in points
        ]
        if thing.style == "hollow":
            thick = max(2, round(radius * 0.12))
            canvas.polygon(placed, fill=ground)
            canvas.line([*placed, placed[0], placed[1]], fill=own, width=thick, joint="curve")
        else:
            canvas.polygon(placed, fill=paints[paint])
            if thing.style == "outlined":
                canvas.line([*placed, placed[0], placed[1]], fill=dark, width=max(1, round(line)), joint="curve")


def _near(rng: random.Random, color: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, channel + rng.randint(-spread, spread))) for channel in color)
    return red, green, blue


def _sheet(rng: random.Random, columns: int = 8, rows: int = 6) -> Image.Image:
    """A contact sheet; its last column shows dense scenes."""
    sheet = Image.new("RGB", (columns * 150, rows * 150), "white")
    for i in range(columns * rows):
        image = draw(dense_scene(rng) if i % columns == columns - 1 else scene(rng))
        image.thumbnail((144, 144))
        sheet.paste(image, (i % columns * 150 + 3, i // columns * 150 + 3))
    return sheet


if __name__ == "__main__":
    _sheet(random.Random(1)).save(sys.argv[1])
