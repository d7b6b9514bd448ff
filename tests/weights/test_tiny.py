"""The embedded model sees: it answers about scenes from seeds of this test alone, and not without its eyes."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4_serve.settings import TINY_MODEL

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "tiny"))

FACTS = ("which", "count_all", "background", "caption", "exists")


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    from evaluate import load

    return load(TINY_MODEL)


def _share(tiny: tuple[Any, Any], kind: str, *, blank: bool = False) -> float:
    from evaluate import fresh, share
    from world import draw

    asked = fresh(kind, 24, seed="test")
    white = Image.new("RGB", (64, 64), "white")
    return share(*tiny, asked, [white if blank else draw(one.scene) for one in asked])


def test_it_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in TINY_MODEL.iterdir()) < 20 * 2**20


def test_it_answers_about_pictures_it_has_never_seen(tiny: tuple[Any, Any]) -> None:
    shares = {kind: _share(tiny, kind) for kind in FACTS}
    assert sum(shares.values()) / len(shares) > 0.7, shares


def test_without_a_picture_it_can_only_guess(tiny: tuple[Any, Any]) -> None:
    shares = {kind: _share(tiny, kind, blank=True) for kind in ("colour", "which", "count_all")}
    assert sum(shares.values()) / len(shares) < 0.4, shares
