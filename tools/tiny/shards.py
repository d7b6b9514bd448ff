"""Rendered scenes on disk, in shards, with their labels as arrays."""

import math
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from minigpt4_serve.errors import InvalidRequest
from tools.tiny.config import DataConfig
from tools.tiny.worker import end_with_parent
from tools.tiny.world import BACKGROUNDS, COLORS, COLUMNS, KINDS, ROWS, SIDE, Scene, Thing, dense_scene, draw, scene

__all__ = ["GEOMETRY", "MAX_OBJECTS", "SceneBatch", "Shards", "encode_labels", "geometry", "render_shards", "to_pixels"]

MAX_OBJECTS = 16
"""Objects of a dense scene."""
_BORDERS = np.array([0.08, 0.17, 0.25, 1 / 3, 0.4, 0.46, 0.54, 0.6, 2 / 3, 0.75, 0.83, 0.92])
_LOG_SIZES = np.log(np.array([0.095, 0.11, 0.13, 0.15, 0.175, 0.205, 0.24, 0.29]))
GEOMETRY = 2 * len(_BORDERS) + len(_LOG_SIZES)
"""Numbers that describe an object's position and size."""
ShardKind = Literal["scenes", "dense"]


def geometry(thing: Thing) -> np.ndarray:
    """Position and size as soft steps in 0 … 1, ``[GEOMETRY]``: one for each border between image regions and one for
    each size, so that "further left" and "bigger" become dot products.
    """
    across = 1 / (1 + np.exp((_BORDERS - thing.x) / 0.025))
    down = 1 / (1 + np.exp((_BORDERS - thing.y) / 0.025))
    size = 1 / (1 + np.exp((_LOG_SIZES - math.log(thing.radius)) / 0.08))
    return np.concatenate([across, down, size]).astype(np.float32)


def encode_labels(things: Sequence[Thing]) -> np.ndarray:
    """``[objects, 6 + GEOMETRY]`` float32: indices of kind, color, row and column; x, y; then ``geometry``."""
    rows = [
        np.concatenate(
            [
                [KINDS.index(t.kind), list(COLORS).index(t.color), ROWS.index(t.row), COLUMNS.index(t.column)],
                [t.x, t.y],
                geometry(t),
            ]
        )
        for t in things
    ]
    return np.array(rows, np.float32).reshape(len(things), 6 + GEOMETRY)


def to_pixels(image: Image.Image) -> np.ndarray:
    """uint8 ``[SIDE, SIDE, 3]``, resized as the model's image processor does."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _scenes(kind: ShardKind, number: int, size: int) -> list[Scene]:
    """The scenes of a shard; they depend on the shard's number only."""
    rng = random.Random(f"{'packed' if kind == 'dense' else 'scenes'} {number}")  # don't reword: it seeds the scenes
    return [dense_scene(rng) if kind == "dense" else scene(rng) for _ in range(size)]


def _file(folder: Path, kind: ShardKind, number: int) -> Path:
    return folder / f"{kind}-{number:04}.npy"


def _render_shard(job: tuple[Path, ShardKind, int, int]) -> None:
    folder, kind, number, size = job
    file = _file(folder, kind, number)
    if not file.exists():
        images = np.stack([to_pixels(draw(one)) for one in _scenes(kind, number, size)])
        partial = file.with_suffix(".partial")
        with partial.open("wb") as handle:
            np.save(handle, images)
        partial.replace(file)


def render_shards(folder: Path, config: DataConfig, *, processes: int) -> None:
    """Render all shards of a configuration that aren't in the folder yet; 38 KB an image."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers: list[tuple[ShardKind, int]] = [("dense", number) for number in range(config.dense_shards)]
    numbers += [("scenes", number) for number in range(config.vision_shards + config.language_shards)]
    jobs = [(folder, kind, number, config.shard_size) for kind, number in numbers]
    if processes == 1:
        for job in jobs:
            _render_shard(job)
    else:
        with ProcessPoolExecutor(processes, initializer=end_with_parent) as pool:
            for done, _ in enumerate(pool.map(_render_shard, jobs), start=1):
                print(
                    f"\rrender: {done * config.shard_size:,} of {len(jobs) * config.shard_size:,}", end="", flush=True
                )
        print()


@dataclass(frozen=True)
class SceneBatch:
    """Images with their labels.

    Attributes:
        images: uint8 ``[N, SIDE, SIDE, 3]``.
        labels: ``[N, MAX_OBJECTS, 6 + GEOMETRY]`` as of ``encode_labels``; zero after the last object.
        radii: ``[N, MAX_OBJECTS]``, fractions of the image; zero after the last object.
        counts: ``[N]``, objects of each scene.
        backgrounds: ``[N]``, indices into ``BACKGROUNDS``.
    """

    images: np.ndarray
    labels: np.ndarray
    radii: np.ndarray
    counts: np.ndarray
    backgrounds: np.ndarray


class Shards:
    """Consecutive shards as one data set. Images stay on disk; scenes are generated again from their seeds.

    Args:
        numbers: of the shards.

    Attributes:
        scenes: all scenes, in order.
        counts: ``[len(scenes)]``, objects of each.

    Raises:
        InvalidRequest: a shard is missing or was rendered with another ``shard_size``.
    """

    def __init__(self, folder: Path, kind: ShardKind, numbers: Sequence[int], shard_size: int) -> None:
        self._shard_size = shard_size
        self._images = []
        for number in numbers:
            file = _file(folder, kind, number)
            if not file.exists():
                raise InvalidRequest(f"There is no {file}: run the stage 'render' first.")
            images = np.load(file, mmap_mode="r")
            if images.shape != (shard_size, SIDE, SIDE, 3):
                raise InvalidRequest(f"{file} holds {images.shape[0]} images, not {shard_size}: use a new run folder.")
            self._images.append(images)
        self.scenes = [one for number in numbers for one in _scenes(kind, number, shard_size)]
        self.counts = np.array([len(one.things) for one in self.scenes])
        self._labels = np.zeros((len(self.scenes), MAX_OBJECTS, 6 + GEOMETRY), np.float32)
        self._radii = np.zeros((len(self.scenes), MAX_OBJECTS), np.float32)
        for i, one in enumerate(self.scenes):
            self._labels[i, : len(one.things)] = encode_labels(one.things)
            self._radii[i, : len(one.things)] = [thing.radius for thing in one.things]
        self._backgrounds = np.array([list(BACKGROUNDS).index(one.background) for one in self.scenes])

    def __len__(self) -> int:
        return len(self.scenes)

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 ``[len(indices), SIDE, SIDE, 3]``."""
        places = (divmod(int(index), self._shard_size) for index in indices)
        return np.stack([self._images[shard][row] for shard, row in places])

    def batch(self, indices: np.ndarray) -> SceneBatch:
        """The scenes of these indices, ``[N]``."""
        return SceneBatch(
            self.images(indices),
            self._labels[indices],
            self._radii[indices],
            self.counts[indices],
            self._backgrounds[indices],
        )
