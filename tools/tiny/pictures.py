"""A stock of drawn scenes as arrays, with what every picture shows as targets for seeing. Knows the world and numpy."""

import math
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, ROWS, SIDE, Scene, Thing, draw, packed_scene, scene

__all__ = ["GEOMETRY", "Stock", "geometry", "pixels", "render"]

_SHARD = 4_000
_MOST = 16
_BORDERS = np.array([0.08, 0.17, 0.25, 1 / 3, 0.4, 0.46, 0.54, 0.6, 2 / 3, 0.75, 0.83, 0.92])
_SIZES = np.log(np.array([0.095, 0.11, 0.13, 0.15, 0.175, 0.205, 0.24, 0.29]))
GEOMETRY = 2 * len(_BORDERS) + len(_SIZES)


def geometry(thing: Thing) -> np.ndarray:
    """Place and size as soft steps in 0 … 1, ``[GEOMETRY]``: one for each border that is passed, so that "further
    left" and "bigger" are dot products.
    """
    across = 1 / (1 + np.exp((_BORDERS - thing.x) / 0.025))
    down = 1 / (1 + np.exp((_BORDERS - thing.y) / 0.025))
    size = 1 / (1 + np.exp((_SIZES - math.log(thing.radius)) / 0.08))
    return np.concatenate([across, down, size]).astype(np.float32)


def targets(things: tuple[Thing, ...]) -> np.ndarray:
    """``[things, 4 + 2 + GEOMETRY]``: indices of kind, colour, row, column; x, y; then the soft steps."""
    rows = [
        np.concatenate(
            [
                [KINDS.index(t.kind), list(COLOURS).index(t.colour), ROWS.index(t.row), COLUMNS.index(t.column)],
                [t.x, t.y],
                geometry(t),
            ]
        )
        for t in things
    ]
    return np.array(rows, np.float32).reshape(len(things), 6 + GEOMETRY)


def pixels(picture: Image.Image) -> np.ndarray:
    """uint8 ``[SIDE, SIDE, 3]``, stretched as the model's image processor does."""
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Stock:
    """Pictures uint8 ``[N, SIDE, SIDE, 3]`` with scenes; ``targets`` and ``counts`` are what they show."""

    pictures: np.ndarray
    scenes: list[Scene]
    targets: np.ndarray  # [N, 16, 6 + GEOMETRY], zero rows after the last thing
    counts: np.ndarray  # [N]
    backgrounds: np.ndarray  # [N]


def _scenes(seed: int, packed: bool) -> list[Scene]:
    rng = random.Random(f"{'packed' if packed else 'scenes'} {seed}")
    return [packed_scene(rng) if packed else scene(rng) for _ in range(_SHARD)]


def _render(job: tuple[Path, int, bool]) -> None:
    folder, seed, packed = job
    file = folder / f"{'packed' if packed else 'scenes'}-{seed:04}.npy"
    if not file.exists():
        array = np.stack([pixels(draw(one)) for one in _scenes(seed, packed)])
        partial = file.with_suffix(".partial")
        with partial.open("wb") as handle:
            np.save(handle, array)
        partial.rename(file)


def render(folder: Path, *, shards: int, packed: int, processes: int) -> None:
    """Draw ``shards`` files of 4,000 scenes and ``packed`` files of crowds, those that aren't there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, seed, True) for seed in range(packed)] + [(folder, seed, False) for seed in range(shards)]
    with ProcessPoolExecutor(processes) as pool:
        for done, _ in enumerate(pool.map(_render, jobs), start=1):
            print(f"\rpictures: {done * _SHARD:,} of {len(jobs) * _SHARD:,}", end="", flush=True)
    print()


def stock(folder: Path, shards: Sequence[int], *, packed: bool = False) -> Stock:
    """These files of a folder that ``render`` filled. Scenes are made anew from their seeds."""
    name = "packed" if packed else "scenes"
    scenes = [one for seed in shards for one in _scenes(seed, packed)]
    shown = np.zeros((len(scenes), _MOST, 6 + GEOMETRY), np.float32)
    for i, one in enumerate(scenes):
        shown[i, : len(one.things)] = targets(one.things)
    return Stock(
        np.concatenate([np.load(folder / f"{name}-{seed:04}.npy", mmap_mode="r") for seed in shards]),
        scenes,
        shown,
        np.array([len(one.things) for one in scenes]),
        np.array([list(BACKGROUNDS).index(one.background) for one in scenes]),
    )
