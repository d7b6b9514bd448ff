"""The world of the embedded model: what is drawn is what is said, and nothing ambiguous is asked."""

import json
import random
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "tiny"
sys.path.insert(0, str(TOOLS))

from questions import KINDS_OF_QUESTION, Dialogue, ask, is_right  # noqa: E402
from wordings import NEW, STRANGERS, TRAINED, word  # noqa: E402
from world import BACKGROUNDS, COLOURS, KINDS, Scene, Thing, draw, example, packed_scene, scene  # noqa: E402

STAR, MOON = Thing("star", "red", 0.2, 0.2, 0.15), Thing("moon", "blue", 0.8, 0.75, 0.1)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(KINDS) >= 10
    assert len(COLOURS) >= 8
    assert len(BACKGROUNDS) >= 3
    counts = {len(scene(random.Random(seed)).things) for seed in range(60)}
    assert counts == {1, 2, 3, 4}


def test_the_same_scene_gives_the_same_picture() -> None:
    one = scene(random.Random(7))
    assert draw(one).tobytes() == draw(one).tobytes()
    assert draw(one, side=300).width > draw(one, side=100).width


@pytest.mark.parametrize("seed", range(40))
def test_things_are_whole_and_apart(seed: int) -> None:
    one = scene(random.Random(seed))
    for thing in one.things:
        assert 0 < thing.x < 1
        assert 0 < thing.y < 1
    for i, thing in enumerate(one.things):
        for other in one.things[i + 1 :]:
            across = (thing.x - other.x) * one.aspect**0.5
            down = (thing.y - other.y) / one.aspect**0.5
            assert (across**2 + down**2) ** 0.5 > thing.radius + other.radius


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["flat", "outlined", "hollow"])
def test_a_thing_leaves_its_colour_at_its_place(kind: str, style: str) -> None:
    picture = draw(Scene((Thing(kind, "red", 0.5, 0.5, 0.3, style=style),), "white"), side=200)
    red = [
        (x, y)
        for x in range(0, 200, 2)
        for y in range(0, 200, 2)
        if (pixel := picture.getpixel((x, y)))[0] > 180 and pixel[1] < 80 and pixel[2] < 80
    ]
    assert len(red) > 40
    assert all(abs(x - 100) < 90 and abs(y - 100) < 90 for x, y in red)


def test_a_crowd_has_sixteen() -> None:
    assert len(packed_scene(random.Random(0)).things) == 16
    assert draw(example()).size[0] > 0


def _answers(kind: str, one: Scene, count: int = 30) -> set[str]:
    rng = random.Random(0)
    return {dialogue.answer for _ in range(count) if (dialogue := ask(one, kind, rng)) is not None}


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("colour", {"The star is red.", "The moon is blue."}),
        ("which", {"The red thing is a star.", "The blue thing is a moon."}),
        ("count_all", {"There are two objects."}),
        ("background", {"The background is white."}),
        ("biggest", {"The biggest thing is the red star."}),
        ("smallest", {"The smallest thing is the blue moon."}),
        ("short", {"A red star and a blue moon on a white background."}),
        ("caption", {"A red star and a blue moon."}),
        (
            "detail",
            {
                "There are two objects on a white background. A red star is at the top left. "
                "A blue moon is at the bottom right."
            },
        ),
    ],
)
def test_answers_are_true(kind: str, answers: set[str]) -> None:
    assert _answers(kind, Scene((STAR, MOON), "white")) == answers


def test_relations_are_true_both_ways() -> None:
    said = _answers("relation", Scene((STAR, MOON), "white"), 300)
    assert "The red star is left of the moon." in said
    assert "Nothing is left of the star." in said
    assert "The blue moon is below the star." in said
    assert not any(text.startswith("The red star is right of") for text in said)


def test_what_is_ambiguous_is_not_asked() -> None:
    level = Scene((STAR, Thing("moon", "blue", 0.25, 0.8, 0.14)), "white")
    sideways = [text for text in _answers("relation", level, 200) if "left" in text or "right" in text]
    assert sideways
    assert all(text.startswith("Nothing") for text in sideways)
    assert _answers("biggest", level) == set()
    twins = Scene((STAR, Thing("star", "blue", 0.8, 0.8, 0.1)), "white")
    assert _answers("colour", twins) == set()


@pytest.mark.parametrize("kind", KINDS_OF_QUESTION)
def test_every_kind_is_asked_in_many_ways(kind: str) -> None:
    rng = random.Random(1)
    asked = [ask(scene(rng), kind, rng) for _ in range(400)]
    assert len({dialogue.turns[-1][0] for dialogue in asked if dialogue}) > 30


def test_a_stranger_asks_every_kind_and_no_sentence_was_trained_as_it_stands() -> None:
    trained = json.loads((TOOLS / "wordings.json").read_text(encoding="utf-8"))["trained"]
    assert set(STRANGERS) == {kind for kind in TRAINED if not kind.startswith("follow_")}
    for kind, patterns in STRANGERS.items():
        assert len(patterns) >= 8
        assert not set(patterns) & set(trained[kind]), kind


def test_new_wordings_are_new() -> None:
    rng = random.Random(2)
    parts = {"x": "the star", "y": "the moon", "a": "a star", "n": "stars", "c": "red"}
    assert set(NEW) <= set(TRAINED) != set()
    for kind, patterns in NEW.items():
        assert patterns
        trained = {word(TRAINED[kind], rng, **parts).lower().rstrip("?.!") for _ in range(3000)}
        new = {word((pattern,), rng, **parts).lower().rstrip("?.!") for pattern in patterns}
        assert not trained & new, kind


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("A red star and a blue moon on a white background.", True),
        ("A blue moon and a red star on a white background.", True),
        ("A blue moon and a red star on a gray background.", False),
        ("A red star on a white background.", False),
        ("A red star, a red star and a blue moon on a white background.", False),
        ("", False),
    ],
)
def test_lists_may_come_in_any_order(said: str, right: bool) -> None:
    wanted = Dialogue("short", (("What is this?", "A red star and a blue moon on a white background."),))
    assert is_right(wanted, said) is right
