"""The embedded model answers about scenes of this test's own seeds, and only guesses without the image."""

import re
from typing import Any

import pytest
from PIL import Image

from minigpt4_serve.settings import TINY_MODEL
from tools.tiny import evaluate
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


def test_the_readme_has_the_rows_that_evaluate_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "exact_share", lambda *_: 0.5)
    evaluate.print_table(None, None, each=2)  # type: ignore[arg-type]
    printed = re.findall(r"^\| (.+?) \|", capsys.readouterr().out, re.MULTILINE)
    documented = re.findall(r"^\| (.+?) \|", (TINY_MODEL / "README.md").read_text("utf-8"), re.MULTILINE)
    assert documented == printed
