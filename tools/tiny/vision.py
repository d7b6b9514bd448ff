"""Training objective of the vision encoder and the Q-Former, without language.

The query of each cell predicts the object that it owns; the query of the whole image predicts the number of objects and
the background; every patch predicts what covers its center.
"""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from tools.tiny.config import VisionLossWeights
from tools.tiny.network import CELLS, PATCH, QUERIES
from tools.tiny.shards import GEOMETRY, SceneBatch
from tools.tiny.world import BACKGROUNDS, COLORS, COLUMNS, KINDS, ROWS, SIDE

__all__ = [
    "VisionHeads",
    "VisionNetwork",
    "assign_queries",
    "normalize",
    "predicted_presence",
    "vision_accuracy",
    "vision_losses",
    "weighted_sum",
]

_EMPTY = len(KINDS)
"""Index of the class "no object"."""
_MAX_COUNT = 4
"""The largest number of objects that the query of the whole image counts."""
_CELL_CENTERS = np.array(
    [[(c + 0.5) / CELLS, (r + 0.5) / CELLS] for r in range(CELLS) for c in range(CELLS)], np.float32
)
_PATCHES = SIDE // PATCH
_PATCH_CENTERS = (np.stack(np.meshgrid(range(_PATCHES), range(_PATCHES)), -1).reshape(-1, 2) + 0.5) / _PATCHES
_COVERED = 0.8
"""An object covers what is nearer to its center than this fraction of its radius."""
_PRESENCE_BONUS = 0.7
"""Advantage of a certain query over an undecided one when objects are assigned, in cells of distance."""
_SPLIT = (len(KINDS) + 1, len(COLORS), len(ROWS), len(COLUMNS), 2, GEOMETRY)
_IGNORED = -1
"""The color of a patch that no object covers."""


class VisionHeads(nn.Module):
    """Linear heads on queries and patches; they aren't part of the exported model.

    Args:
        width: hidden size of the vision encoder and the Q-Former.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, sum(_SPLIT))
        self.whole = nn.Linear(width, _MAX_COUNT + 1 + len(BACKGROUNDS))
        self.patches = nn.Linear(width, len(KINDS) + 1 + len(COLORS))


class VisionNetwork(nn.Module):
    """The part of a model that vision training changes (its modules, not copies), and the heads."""

    def __init__(self, model: MiniGPT4ForConditionalGeneration) -> None:
        super().__init__()
        assert model.query_tokens is not None
        assert model.qformer is not None
        self.vision_model = model.vision_model
        self.qformer = model.qformer
        self.query_tokens = model.query_tokens
        self.heads = VisionHeads(model.config.vision_config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized pixels ``[N, 3, SIDE, SIDE]`` → patches ``[N, 64, width]``, queries ``[N, QUERIES, width]``."""
        patches = self.vision_model(pixels).last_hidden_state
        query_tokens = self.query_tokens.expand(len(pixels), QUERIES, -1)
        queries = self.qformer(query_embeds=query_tokens, encoder_hidden_states=patches).last_hidden_state
        return patches[:, 1:], queries


def normalize(images: np.ndarray) -> torch.Tensor:
    """uint8 ``[N, SIDE, SIDE, 3]`` → the model's pixels, float32 ``[N, 3, SIDE, SIDE]``."""
    low, high = (MiniGPT4ImageProcessor(1).to_tensor(Image.new("RGB", (1, 1), end)) for end in ("black", "white"))
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255 * (high - low) + low


def assign_queries(presence: np.ndarray, positions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Assign each object to a cell's query: greedily the nearest free one, with a bonus for queries that predict an
    object. Borders between cells alone therefore decide nothing.

    Args:
        presence: ``[N, CELLS²]`` in 0 … 1, as of ``predicted_presence``.
        positions: ``[N, objects, 2]``, centers in fractions of the image.
        counts: ``[N]``, objects of each scene; positions beyond are ignored.

    Returns:
        ``[N, objects]``: indices of queries, 0 beyond the last object.
    """
    distance = np.linalg.norm(positions[:, :, None] - _CELL_CENTERS, axis=-1) * CELLS  # [N, objects, cells]
    cost = distance - _PRESENCE_BONUS * presence[:, None]
    queries = np.zeros(cost.shape[:2], np.int64)
    for image, count in enumerate(counts):
        remaining = cost[image, :count].copy()
        for _ in range(count):
            thing, query = divmod(int(remaining.argmin()), CELLS * CELLS)
            queries[image, thing] = query
            remaining[thing] = np.inf
            remaining[:, query] = np.inf
    return queries


def predicted_presence(heads: VisionHeads, queries: torch.Tensor) -> np.ndarray:
    """Predicted probability that each cell's query owns an object: ``[N, QUERIES, width]`` → ``[N, CELLS²]``."""
    kind = heads.cells(queries[:, :-1]).detach().float()[..., : _EMPTY + 1]
    return np.asarray((1 - kind.softmax(-1)[..., _EMPTY]).numpy())


def vision_losses(
    heads: VisionHeads, patches: torch.Tensor, queries: torch.Tensor, batch: SceneBatch, empty_class: float
) -> dict[str, torch.Tensor]:
    """Unweighted loss terms by the names of ``VisionLossWeights``, scalars; terms without a single target are left out.

    Args:
        patches: ``[N, 64, width]``.
        queries: ``[N, QUERIES, width]``.
        empty_class: class weight of "no object".
    """
    class_weights = torch.ones(len(KINDS) + 1)
    class_weights[_EMPTY] = empty_class
    return {
        **_cell_losses(heads, queries, batch, class_weights),
        **_whole_losses(heads, queries, batch),
        **_patch_losses(heads, patches, batch, class_weights),
    }


def weighted_sum(losses: Mapping[str, torch.Tensor], weights: VisionLossWeights) -> torch.Tensor:
    """The scalar that is minimized."""
    return torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()


def _cell_losses(
    heads: VisionHeads, queries: torch.Tensor, batch: SceneBatch, class_weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    kind, color, row, column, position, steps = heads.cells(queries[:, :-1]).float().split(_SPLIT, -1)
    owners = assign_queries(predicted_presence(heads, queries), batch.labels[..., 4:6], batch.counts)
    image = np.repeat(np.arange(len(batch.counts)), batch.counts)
    thing = np.concatenate([np.arange(count) for count in batch.counts])
    query = owners[image, thing]
    target = torch.from_numpy(batch.labels[image, thing])  # [objects, 6 + GEOMETRY]
    kind_target = torch.full(kind.shape[:2], _EMPTY)
    kind_target[image, query] = target[:, 0].long()
    return {
        "kind": functional.cross_entropy(kind.flatten(0, 1), kind_target.flatten(), class_weights),
        "color": functional.cross_entropy(color[image, query], target[:, 1].long()),
        "row": functional.cross_entropy(row[image, query], target[:, 2].long()),
        "column": functional.cross_entropy(column[image, query], target[:, 3].long()),
        "position": functional.smooth_l1_loss(position[image, query], target[:, 4:6]),
        "geometry": functional.binary_cross_entropy_with_logits(steps[image, query], target[:, 6:]),
    }


def _whole_losses(heads: VisionHeads, queries: torch.Tensor, batch: SceneBatch) -> dict[str, torch.Tensor]:
    count, background = heads.whole(queries[:, -1]).float().split((_MAX_COUNT + 1, len(BACKGROUNDS)), -1)
    losses = {"background": functional.cross_entropy(background, torch.from_numpy(batch.backgrounds))}
    counted = torch.from_numpy(batch.counts <= _MAX_COUNT)
    if counted.any():
        losses["count"] = functional.cross_entropy(count[counted], torch.from_numpy(batch.counts)[counted])
    return losses


def _patch_losses(
    heads: VisionHeads, patches: torch.Tensor, batch: SceneBatch, class_weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    kind, color = heads.patches(patches).float().split((len(KINDS) + 1, len(COLORS)), -1)
    kind_target, color_target = _patch_targets(batch)
    losses = {"patch_kind": functional.cross_entropy(kind.flatten(0, 1), kind_target.flatten(), class_weights)}
    covered = color_target != _IGNORED
    if covered.any():
        losses["patch_color"] = functional.cross_entropy(color[covered], color_target[covered])
    return losses


def _patch_targets(batch: SceneBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Kind and color of what covers each patch's center, int64 ``[N, 64]`` each; empty and ignored where nothing is."""
    offsets = _PATCH_CENTERS[None, :, None] - batch.labels[:, None, :, 4:6]
    distance = np.linalg.norm(offsets, axis=-1) / np.maximum(batch.radii, 1e-6)[:, None]  # [N, patches, objects]
    nearest = distance.argmin(-1)
    covered = np.take_along_axis(distance, nearest[..., None], -1)[..., 0] < _COVERED
    kind = np.where(covered, np.take_along_axis(batch.labels[..., 0], nearest, 1), _EMPTY)
    color = np.where(covered, np.take_along_axis(batch.labels[..., 1], nearest, 1), _IGNORED)
    return torch.from_numpy(kind).long(), torch.from_numpy(color).long()


@torch.no_grad()
def vision_accuracy(heads: VisionHeads, queries: torch.Tensor, batch: SceneBatch) -> dict[str, float]:
    """Fractions in 0 … 1: objects whose kind, color and place (row and column) are right; scenes in which the kind and
    color of all objects are right and no other is predicted; counts; backgrounds.
    """
    kind, color, row, column, _, _ = heads.cells(queries[:, :-1]).float().split(_SPLIT, -1)
    owners = assign_queries(predicted_presence(heads, queries), batch.labels[..., 4:6], batch.counts)
    predicted = [head.argmax(-1).numpy() for head in (kind, color, row, column)]
    correct = np.zeros((4, 0))
    scenes = 0
    for n, count in enumerate(batch.counts):
        cells = owners[n, :count]
        of_scene = np.array([predicted[i][n, cells] == batch.labels[n, :count, i] for i in range(4)])
        correct = np.concatenate([correct, of_scene], 1)
        if of_scene[:2].all() and (predicted[0][n] != _EMPTY).sum() == count:
            scenes += 1
    whole = heads.whole(queries[:, -1]).float()
    return {
        "kind": float(correct[0].mean()),
        "color": float(correct[1].mean()),
        "place": float((correct[2] * correct[3]).mean()),
        "scene": scenes / len(batch.counts),
        "count": float((whole[:, : _MAX_COUNT + 1].argmax(-1).numpy() == batch.counts).mean()),
        "background": float((whole[:, _MAX_COUNT + 1 :].argmax(-1).numpy() == batch.backgrounds).mean()),
    }


assert SIDE % PATCH == 0
