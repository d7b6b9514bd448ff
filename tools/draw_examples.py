"""Draws the example pictures of ``minigpt4 web`` from the world that the embedded model knows, and the page's icon.

Run it after a change here: ``python tools/draw_examples.py``. A test compares what is shipped with what is drawn.
"""

from pathlib import Path

from PIL import Image

from tools.tiny.world import Scene, Thing, draw

FOLDER = Path(__file__).parent.parent / "minigpt4_serve" / "web" / "examples"
SIDE = 280
"""Pixels, the root of each picture's area. They are drawn four times larger and made smaller, for smooth edges."""

EXAMPLES = {
    "village": Scene(
        (
            Thing("house", "red", 0.27, 0.62, 0.24),
            Thing("tree", "green", 0.74, 0.55, 0.25),
        ),
        "beige",
        aspect=4 / 3,
        seed=12,
    ),
    "night": Scene(
        (
            Thing("moon", "yellow", 0.7, 0.32, 0.19),
            Thing("star", "orange", 0.25, 0.68, 0.16, 10),
        ),
        "black",
        aspect=4 / 3,
        seed=3,
    ),
    "pond": Scene(
        (
            Thing("fish", "blue", 0.24, 0.26, 0.18),
            Thing("fish", "orange", 0.72, 0.5, 0.2),
            Thing("fish", "pink", 0.27, 0.77, 0.17),
        ),
        "white",
        aspect=4 / 3,
        seed=23,
    ),
    "love": Scene((Thing("heart", "red", 0.5, 0.5, 0.3, -6),), "white", aspect=4 / 3, seed=5),
}


def icon() -> Image.Image:
    """A star on white, as a browser's tab shows it."""
    return _smooth(Scene((Thing("star", "yellow", 0.5, 0.53, 0.42),), "black", seed=8), 64)


def _smooth(scene: Scene, side: int) -> Image.Image:
    large = draw(scene, 4 * side)
    return large.resize((large.width // 4, large.height // 4), Image.Resampling.LANCZOS)


def pictures() -> dict[str, Image.Image]:
    """File names and what they show."""
    return {**{f"{name}.png": _smooth(scene, SIDE) for name, scene in EXAMPLES.items()}, "icon.png": icon()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        picture.quantize(64, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
