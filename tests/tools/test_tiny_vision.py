"""The vision objective: how objects are assigned to queries, what each term grades, and how terms are weighted."""

import random

import numpy as np
import pytest
import torch

from tools.tiny.config import VisionLossWeights
from tools.tiny.network import CELLS, QUERIES
from tools.tiny.shards import MAX_OBJECTS, SceneBatch, encode_labels
from tools.tiny.vision import VisionHeads, assign_queries, vision_accuracy, vision_losses, weighted_sum
from tools.tiny.world import BACKGROUNDS, KINDS, SIDE, Scene, Thing, dense_scene, scene

WIDTH = 8


def _batch(*scenes: Scene) -> SceneBatch:
    labels = np.zeros((len(scenes), MAX_OBJECTS, encode_labels(scenes[0].things).shape[1]), np.float32)
    radii = np.zeros((len(scenes), MAX_OBJECTS), np.float32)
    for i, one in enumerate(scenes):
        labels[i, : len(one.things)] = encode_labels(one.things)
        radii[i, : len(one.things)] = [thing.radius for thing in one.things]
    return SceneBatch(
        np.zeros((len(scenes), SIDE, SIDE, 3), np.uint8),
        labels,
        radii,
        np.array([len(one.things) for one in scenes]),
        np.array([list(BACKGROUNDS).index(one.background) for one in scenes]),
    )


def _losses(*scenes: Scene) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    patches = torch.randn(len(scenes), 64, WIDTH)
    queries = torch.randn(len(scenes), QUERIES, WIDTH)
    losses = vision_losses(VisionHeads(WIDTH), patches, queries, _batch(*scenes), 0.8)
    return {name: loss.detach() for name, loss in losses.items()}


def test_objects_go_to_the_nearest_free_query() -> None:
    positions = np.array([[(0.1, 0.1), (0.13, 0.12), (0.9, 0.9)]])
    no_presence = np.zeros((1, CELLS * CELLS))
    (owners,) = assign_queries(no_presence, positions, np.array([3]))
    assert owners[1] == 0  # the nearest to the first cell's center
    assert owners[0] in {1, 4}  # a neighbor of it
    assert owners[2] == CELLS * CELLS - 1


def test_a_query_that_predicts_an_object_is_preferred() -> None:
    border = np.array([[(0.249, 0.125)]])  # barely in the first cell
    presence = np.zeros((1, CELLS * CELLS))
    assert assign_queries(presence, border, np.array([1])) == [[0]]
    presence[0, 1] = 0.9
    assert assign_queries(presence, border, np.array([1])) == [[1]]


def test_every_term_has_a_weight() -> None:
    names = set(_losses(scene(random.Random(0)), dense_scene(random.Random(1))))
    assert names | {"empty_class"} == set(VisionLossWeights.model_fields)


def test_terms_without_a_target_are_left_out() -> None:
    assert "count" not in _losses(dense_scene(random.Random(1)))
    between_patches = Scene((Thing("star", "red", 0.5, 0.5, 0.01),), "white")
    losses = _losses(between_patches)
    assert "patch_color" not in losses
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", sorted(set(VisionLossWeights.model_fields) - {"empty_class"}))
def test_each_weight_scales_its_term(name: str) -> None:
    losses = _losses(scene(random.Random(0)), scene(random.Random(3)))
    nothing = VisionLossWeights.model_validate(dict.fromkeys(VisionLossWeights.model_fields, 0.0))
    assert float(weighted_sum(losses, nothing)) == 0
    one = nothing.model_copy(update={name: 2.5})
    assert float(weighted_sum(losses, one)) == pytest.approx(2.5 * float(losses[name]))


def test_the_empty_class_weight_changes_the_kind_terms() -> None:
    torch.manual_seed(0)
    heads = VisionHeads(WIDTH)
    batch = _batch(scene(random.Random(0)))
    patches = torch.randn(1, 64, WIDTH)
    queries = torch.randn(1, QUERIES, WIDTH)
    low, high = (vision_losses(heads, patches, queries, batch, weight) for weight in (0.1, 2.0))
    changed = {name for name in low if not torch.equal(low[name], high[name])}
    assert changed == {"kind", "patch_kind"}


def test_perfect_predictions_are_fully_accurate() -> None:
    one = Scene((Thing("moon", "blue", 0.125, 0.125, 0.1), Thing("star", "red", 0.875, 0.875, 0.1)), "beige")
    batch = _batch(one)
    heads = VisionHeads(QUERIES)
    predictions = np.full((QUERIES - 1, heads.cells.out_features), -9.0, np.float32)
    predictions[:, len(KINDS)] = 9  # "no object"
    offsets = np.cumsum([0, len(KINDS) + 1, 8, 3])
    for label, query in zip(batch.labels[0, :2], (0, CELLS * CELLS - 1), strict=True):
        predictions[query, len(KINDS)] = -9
        predictions[query, offsets + label[:4].astype(int)] = 9
    whole = np.full(heads.whole.out_features, -9.0, np.float32)
    whole[[2, 5 + list(BACKGROUNDS).index("beige")]] = 9
    with torch.no_grad():  # each query is a unit vector, so that the heads' columns are its predictions
        heads.cells.weight.zero_()[:, : QUERIES - 1] = torch.from_numpy(predictions.T)
        heads.cells.bias.zero_()
        heads.whole.weight.zero_()[:, QUERIES - 1] = torch.from_numpy(whole)
        heads.whole.bias.zero_()
    queries = torch.eye(QUERIES).unsqueeze(0)
    assert set(vision_accuracy(heads, queries, batch).values()) == {1.0}
    wrong = _batch(Scene((one.things[0], Thing("star", "pink", 0.875, 0.875, 0.1)), "white"))
    accuracy = vision_accuracy(heads, queries, wrong)
    assert (accuracy["kind"], accuracy["color"], accuracy["scene"]) == (1.0, 0.5, 0.0)
    assert (accuracy["count"], accuracy["background"]) == (1.0, 0.0)
