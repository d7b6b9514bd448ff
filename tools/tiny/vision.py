"""Learning to see, without language: each query names the thing in its cell, the last one counts and names the ground.

Knows pictures and the model's eyes; nothing of words or the LLM.
"""

import numpy as np
import torch
from network import CELLS, QUERIES
from pictures import GEOMETRY, Stock
from PIL import Image
from torch import nn
from torch.nn import functional
from world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, ROWS, SIDE

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor

__all__ = ["SeeingHeads", "match", "normalised", "presence_of", "see", "seeing_accuracy", "seeing_loss"]

_NOTHING = len(KINDS)
_ANCHORS = np.array([[(c + 0.5) / CELLS, (r + 0.5) / CELLS] for r in range(CELLS) for c in range(CELLS)], np.float32)
_PATCHES = 8
_SPLIT = (len(KINDS) + 1, len(COLOURS), len(ROWS), len(COLUMNS), 2, GEOMETRY)


class SeeingHeads(nn.Module):
    """What the eyes are asked while they learn; thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, sum(_SPLIT))
        self.whole = nn.Linear(width, 5 + len(BACKGROUNDS))
        self.patches = nn.Linear(width, len(KINDS) + 1 + len(COLOURS))


def normalised(pictures: np.ndarray) -> torch.Tensor:
    """uint8 ``[N, SIDE, SIDE, 3]`` → the model's pixels ``[N, 3, SIDE, SIDE]``."""
    low, high = (MiniGPT4ImageProcessor(1).to_tensor(Image.new("RGB", (1, 1), end)) for end in ("black", "white"))
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255 * (high - low) + low


def see(model: MiniGPT4ForConditionalGeneration, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(patches ``[N, 64, width]``, queries ``[N, QUERIES, width]``)."""
    patches = model.vision_model(pixels).last_hidden_state
    assert model.query_tokens is not None
    assert model.qformer is not None
    queries = model.query_tokens.expand(len(pixels), QUERIES, -1)
    return patches[:, 1:], model.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state


def match(presence: np.ndarray, places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which cell's query owns which thing, ``[N, things]``: the nearest free one, where a query that already claims
    to see something is preferred. Borders of cells decide nothing.

    Args:
        presence: ``[N, CELLS²]``, 0 … 1.
        places: ``[N, things, 2]``.
        counts: ``[N]``, things that are there.
    """
    distance = np.linalg.norm(places[:, :, None] - _ANCHORS, axis=-1) * CELLS  # [N, things, cells]
    cost = distance - 0.7 * presence[:, None]
    owners = np.zeros(cost.shape[:2], np.int64)
    for picture, count in enumerate(counts):
        free = cost[picture, :count].copy()
        for _ in range(count):
            thing, cell = divmod(int(free.argmin()), CELLS * CELLS)
            owners[picture, thing] = cell
            free[thing] = np.inf
            free[:, cell] = np.inf
    return owners


def presence_of(heads: SeeingHeads, queries: torch.Tensor) -> np.ndarray:
    """How sure each cell's query is that it owns a thing, ``[N, CELLS²]`` in 0 … 1."""
    kind = heads.cells(queries[:, :-1]).detach().float()[..., : _NOTHING + 1]
    return (1 - kind.softmax(-1)[..., _NOTHING]).numpy()


def seeing_loss(
    heads: SeeingHeads, patches: torch.Tensor, queries: torch.Tensor, stock: Stock, rows: np.ndarray
) -> torch.Tensor:
    """Sum of the losses of all heads, a scalar."""
    shown, counts = stock.targets[rows], stock.counts[rows]
    cells = heads.cells(queries[:, :-1]).float()
    kind, colour, row, column, place, steps = cells.split(_SPLIT, -1)
    owners = match(presence_of(heads, queries), shown[..., 4:6], counts)
    picture = np.repeat(np.arange(len(rows)), counts)
    thing = np.concatenate([np.arange(count) for count in counts])
    cell = owners[picture, thing]
    wanted = torch.from_numpy(shown[picture, thing])  # [things, 6 + GEOMETRY]
    kinds = torch.full(kind.shape[:2], _NOTHING)
    kinds[picture, cell] = wanted[:, 0].long()
    weight = torch.ones(len(KINDS) + 1)
    weight[_NOTHING] = 0.8
    loss = functional.cross_entropy(kind.flatten(0, 1), kinds.flatten(), weight)
    for head, index in ((colour, 1), (row, 2), (column, 3)):
        loss = loss + 0.6 * functional.cross_entropy(head[picture, cell], wanted[:, index].long())
    loss = loss + 4 * functional.smooth_l1_loss(place[picture, cell], wanted[:, 4:6])
    loss = loss + 1.5 * functional.binary_cross_entropy_with_logits(steps[picture, cell], wanted[:, 6:])
    whole = heads.whole(queries[:, -1]).float()
    few = torch.from_numpy(counts <= 4)
    if few.any():
        loss = loss + 0.3 * functional.cross_entropy(whole[few, :5], torch.from_numpy(counts)[few])
    loss = loss + 0.3 * functional.cross_entropy(whole[:, 5:], torch.from_numpy(stock.backgrounds[rows]))
    # Every patch says what covers its middle.
    centres = (np.stack(np.meshgrid(range(_PATCHES), range(_PATCHES)), -1).reshape(-1, 2) + 0.5) / _PATCHES
    radius = np.array(
        [[t.radius for t in stock.scenes[i].things] + [0.0] * (16 - counts[n]) for n, i in enumerate(rows)]
    )
    near = np.linalg.norm(centres[None, :, None] - shown[:, None, :, 4:6], axis=-1) / np.maximum(radius, 1e-6)[:, None]
    best = near.argmin(-1)  # [N, patches]
    covered = np.take_along_axis(near, best[..., None], -1)[..., 0] < 0.8
    which = np.where(covered, np.take_along_axis(shown[..., 0], best, 1), _NOTHING)
    paint = np.where(covered, np.take_along_axis(shown[..., 1], best, 1), -100)
    said = heads.patches(patches).float()
    loss = loss + 0.5 * functional.cross_entropy(
        said[..., : _NOTHING + 1].flatten(0, 1), torch.from_numpy(which).long().flatten(), weight
    )
    return loss + 0.3 * functional.cross_entropy(
        said[..., _NOTHING + 1 :].flatten(0, 1), torch.from_numpy(paint).long().flatten()
    )


@torch.no_grad()
def seeing_accuracy(heads: SeeingHeads, queries: torch.Tensor, stock: Stock, rows: np.ndarray) -> dict[str, float]:
    """Fractions: things present found and right in kind, colour and place; whole scenes right; counts, backgrounds."""
    shown, counts = stock.targets[rows], stock.counts[rows]
    kind, colour, row, column, _, _ = heads.cells(queries[:, :-1]).float().split(_SPLIT, -1)
    owners = match(presence_of(heads, queries), shown[..., 4:6], counts)
    said = [head.argmax(-1).numpy() for head in (kind, colour, row, column)]
    right = np.zeros((4, 0))
    scenes = 0
    for n, count in enumerate(counts):
        cells = owners[n, :count]
        mine = np.array([said[i][n, cells] == shown[n, :count, i] for i in range(4)])
        right = np.concatenate([right, mine], 1)
        scenes += bool(mine[:2].all() and (said[0][n] != _NOTHING).sum() == count)
    whole = heads.whole(queries[:, -1]).float()
    return {
        "kind": float(right[0].mean()),
        "colour": float(right[1].mean()),
        "place": float((right[2] * right[3]).mean()),
        "scene": scenes / len(rows),
        "count": float((whole[:, :5].argmax(-1).numpy() == counts).mean()),
        "background": float((whole[:, 5:].argmax(-1).numpy() == stock.backgrounds[rows]).mean()),
    }


assert SIDE % _PATCHES == 0
