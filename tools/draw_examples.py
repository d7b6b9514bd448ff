"""Draw the example images of the chat page, scenes like those in the embedded model's training, and the page's icon.

    python -m tools.draw_examples

Run it after a change here. A test compares what is shipped with what is drawn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import minigpt4_serve
from tools.tiny.world import Scene, Thing, draw

__all__ = ["PAGE_FOLDER", "draw_examples", "main"]

PAGE_FOLDER = Path(minigpt4_serve.__file__).parent / "page"

_SIDE = 280  # pixels: the square root of each image's area
_ICON_SIDE = 64
_SUPERSAMPLING = 4  # images are drawn larger by this factor and scaled down, for smooth edges

SCENES = {
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


ICON = Scene((Thing("star", "yellow", 0.5, 0.53, 0.42),), "black", seed=8)
"""The icon of a browser's tab."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all images. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.draw_examples", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=PAGE_FOLDER, help="default: %(default)s")
    folder = parser.parse_args(arguments).folder
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    for name, image in draw_examples().items():
        image.quantize(64, dither=Image.Dither.NONE).save(folder / name, optimize=True)
    return 0


def draw_examples() -> dict[str, Image.Image]:
    """The images by path in the page's folder, before their colors are reduced."""
    examples = {f"examples/{name}.png": _draw_smooth(scene, _SIDE) for name, scene in SCENES.items()}
    return {**examples, "icon.png": _draw_smooth(ICON, _ICON_SIDE)}


def _draw_smooth(scene: Scene, side: int) -> Image.Image:
    large = draw(scene, _SUPERSAMPLING * side)
    size = (large.width // _SUPERSAMPLING, large.height // _SUPERSAMPLING)
    return large.resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
