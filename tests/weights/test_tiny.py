"""The embedded model answers about scenes of this test's own seeds, and only guesses without the image."""

from typing import Any

import pytest
from PIL import Image

from minigpt4_serve.settings import TINY_MODEL
from tools.tiny.evaluate import evaluation_set, exact_share, load
from tools.tiny.world import draw

FACTS = ("which", "count_all", "background", "caption", "exists")


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return load(TINY_MODEL)


def _share(tiny: tuple[Any, Any], kind: str, *, blank: bool = False) -> float:
    questions = evaluation_set(kind, 24, seed="test")
    white = Image.new("RGB", (64, 64), "white")
    return exact_share(*tiny, questions, [white if blank else draw(one.scene) for one in questions])


def test_it_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in TINY_MODEL.iterdir()) < 20 * 2**20


def test_it_answers_about_unseen_images(tiny: tuple[Any, Any]) -> None:
    shares = {kind: _share(tiny, kind) for kind in FACTS}
    assert sum(shares.values()) / len(shares) > 0.7, shares


def test_it_only_guesses_without_the_image(tiny: tuple[Any, Any]) -> None:
    shares = {kind: _share(tiny, kind, blank=True) for kind in ("color", "which", "count_all")}
    assert sum(shares.values()) / len(shares) < 0.4, shares
