"""Metrics equal the official implementations on recorded cases, and have the properties that their definitions give."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt4_serve.evaluation import yes_no
from minigpt4_serve.evaluation.box_overlap import iou, is_located, read_box
from minigpt4_serve.evaluation.chair import ObjectNames, count_objects, read_synonyms
from minigpt4_serve.evaluation.intervals import total
from minigpt4_serve.evaluation.tasks import TASKS
from minigpt4_serve.evaluation.vqa_accuracy import normalize_answer, soft_accuracy, vizwiz_accuracy

NAMES = read_synonyms(Path(__file__).parents[2] / "minigpt4_serve" / "evaluation" / "coco_objects.txt")
WORDS = st.text(st.sampled_from("abc 12.,'?-"), max_size=12)


# Recorded by running GT-Vision-Lab/VQA's vqaEval.py (overall accuracy) under Python 3 on these answers.
@pytest.mark.parametrize(
    ("answer", "people", "accuracy"),
    [
        ("Two.", ["2"] * 3 + ["two"] * 2 + ["three"] * 5, 1.0),
        ("the dog", ["dog"] * 2 + ["a dog"] + ["cat"] * 7, 0.9),
        ("1,000", ["1000"] + ["1,000"] + ["many"] * 8, 0.6),
        ("Yes", ["yes"] * 10, 0.0),  # nothing is normalized where all people agree
        ("yes", ["yes"] * 10, 1.0),
        ("dont know", ["don't know"] * 4 + ["unknown"] * 6, 1.0),
        ("half-full", ["half full"] * 9 + ["full"], 1.0),
        ("red, blue", ["red blue", "red,blue", "red and blue"] * 3 + ["red"], 1.0),
    ],
)
def test_soft_accuracy_is_the_official_one(answer: str, people: list[str], accuracy: float) -> None:
    assert soft_accuracy(answer, people) == pytest.approx(accuracy)


def test_the_originals_copy_of_soft_accuracy_ignores_case() -> None:
    assert soft_accuracy("yes", ["Yes"] * 10, ignore_case=True) == 1
    assert soft_accuracy("yes", ["Yes"] * 10) == 0


# Recorded from processPunctuation and processDigitArticle of the same file.
@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Dog.", "dog"),
        ("none", "0"),
        ("ten", "10"),
        ("1.5", "1.5"),
        ("1,000 men", "1000 men"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # words: allow
        ("wed", "wed"),
        ("he'dve", "he'd've"),
        ("red/blue", "red blue"),
        ("red/ blue", "red blue"),
        ("what?", "what"),
        ("a an the", ""),
    ],
)
def test_answers_are_normalized_as_officially(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@given(st.lists(WORDS, min_size=10, max_size=10), WORDS)
def test_soft_accuracy_is_a_share(people: list[str], answer: str) -> None:
    assert 0 <= soft_accuracy(answer, people) <= 1


@given(WORDS, st.integers(4, 10), WORDS)
def test_an_answer_of_four_people_is_wholly_right(answer: str, agreeing: int, other: str) -> None:
    people = [answer] * agreeing + [other] * (10 - agreeing)
    assert soft_accuracy(answer, people) == pytest.approx(1.0)


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (10, 1.0)])
def test_vizwiz_counts_a_third_for_each_match(matches: int, accuracy: float) -> None:
    """Source: the original's eval_vqa.py."""
    assert vizwiz_accuracy("Red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(accuracy)


# By computeIoU of the original's eval_utils.py; 100 by 100 pixels with inclusive edges have 101 by 101.
@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ((0, 0, 100, 100), (0, 0, 100, 100), 1.0),
        ((0, 0, 9, 9), (0, 0, 9, 19), 0.5),
        ((0, 0, 9, 9), (20, 20, 29, 29), 0.0),
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
        ((0, 0, 9, 9), (9, 9, 18, 18), 1 / 199),
        ((10, 20, 40, 50), (15, 25, 45, 55), 676 / 1246),
    ],
)
def test_iou_counts_edges_as_the_original(first: tuple[float, ...], second: tuple[float, ...], overlap: float) -> None:
    assert iou(first, second) == pytest.approx(overlap)
    assert iou(second, first) == pytest.approx(overlap)


# By the original's eval_ref.py, in which answers with other than four integers are worth nothing.
@pytest.mark.parametrize(
    ("answer", "located"),
    [
        ("{<25><25><75><75>}", True),
        ("<p>the disc</p> {<25><25><75><75>}", True),
        ("{<25> <25> <75><75>}<unk>", True),
        ("{<25><25><75><75>}<delim>{<0><0><1><1>}", False),
        ("<p>2 discs</p> {<25><25><75><75>}", False),
        ("{<0><0><50><50>}", False),
        ("at 25 25 75 75", False),
        ("{<25><25><75>", False),
        ("", False),
    ],
)
def test_a_box_is_right_if_it_overlaps_by_half(answer: str, located: bool) -> None:
    assert is_located(answer, [50, 25, 100, 50], 200, 100) is located


def test_an_overlap_of_exactly_half_is_right() -> None:
    assert iou((0, 0, 99, 99), (0, 0, 99, 199)) == 0.5
    assert is_located("{<0><0><99><99>}", [0, 0, 99, 199], 100, 100)
    assert not is_located("{<0><0><99><98>}", [0, 0, 99, 199], 100, 100)


def test_boxes_are_percent_of_the_image() -> None:
    assert read_box("{<0><10><50><100>}", 640, 480) == (0, 48, 320, 480)


# Rule and figures of RUCAIBox/POPE's evaluate.py, run on these answers.
@pytest.mark.parametrize(
    ("answer", "no"),
    [
        ("No, there is no snowboard.", True),
        ("no", True),
        ("There is not a dog in it.", True),
        ("Yes. There is no doubt.", False),
        ("yes", False),
        ("NO", False),
        ("none", False),
        ("nothing", False),
        ("Not", False),
        ("", False),
        ("It is empty. No dog.", False),
    ],
)
def test_pope_takes_few_words_for_a_no(answer: str, no: bool) -> None:
    assert yes_no.says_no(answer) is no


def _pope(pairs: list[tuple[str, bool]]) -> dict[str, float | None]:
    totals = total([yes_no.count_outcome(answer, truth=truth) for answer, truth in pairs])
    return {name: metric(totals) for name, metric in TASKS["pope"].metrics.items()}


def test_pope_figures_are_the_official_ones() -> None:
    pairs = [("Yes", True)] * 5 + [("No", True)] * 2 + [("yes", False)] * 3 + [("no", False)] * 4
    assert _pope(pairs) == pytest.approx(
        {"accuracy": 9 / 14, "precision": 5 / 8, "recall": 5 / 7, "f1": 2 / 3, "yes_share": 8 / 14}
    )


def test_a_constant_yes_has_known_pope_figures() -> None:
    """Each of coco_pope_{random,popular,adversarial}.json has 1,500 questions with yes and 1,500 with no."""
    figures = _pope([("Yes", True), ("Yes", False)] * 1500)
    assert figures == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_share": 1.0})


@given(st.lists(st.booleans(), min_size=1))
def test_a_perfect_pope_answerer_has_full_accuracy(truths: list[bool]) -> None:
    figures = _pope([("Yes." if truth else "No.", truth) for truth in truths])
    assert figures["accuracy"] == 1
    assert figures["yes_share"] == pytest.approx(sum(truths) / len(truths))


def test_undefined_pope_figures_are_none() -> None:
    assert _pope([("no", False)])["precision"] is None
    assert _pope([("no", False)])["recall"] is None


# Recorded by running LisaAnne/Hallucination's chair.py with its synonyms.txt, pattern's singularize and words split at
# punctuation. The names in these sentences are the same in this project's own list.
@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("Two dogs and a baby elephant stand next to a fire hydrant.", ["dog", "elephant", "fire hydrant"]),
        (
            "A man in a bow tie holds wine glasses beside knives and forks.",
            ["person", "tie", "wine glass", "knife", "fork"],
        ),
        (
            "People sit on benches at a dining table with hot dogs and cupcakes.",
            ["person", "bench", "dining table", "hot dog", "cake"],
        ),
        ("The seat of the toilet is up.", ["toilet"]),
        ("A passenger train passes sheep, geese and oxen near a home plate.", ["train", "sheep", "bird", "cow"]),
        (
            "Several buses, boxes and mice on a desk with laptop computers.",
            ["bus", "mouse", "dining table", "laptop"],
        ),
        (
            "Children fly kites; women carry suitcases and umbrellas.",
            ["person", "kite", "person", "suitcase", "umbrella"],
        ),
        ("A pair of scissors, skis and a tennis racket.", ["scissors", "skis", "tennis racket"]),
        ("Potatoes, tomatoes, broccoli and sandwiches on dishes.", ["broccoli", "sandwich"]),
        (
            "Three traffic lights and stop signs on streets with cell phones and TVs.",
            ["traffic light", "stop sign", "cell phone", "tv"],
        ),
        ("Wolves and puppies with teddy bears.", ["dog", "teddy bear"]),
        ("A passenger jet above an adult bird on train tracks.", ["airplane", "bird"]),
        ("The man's kite is high in clear blue skies.", ["person", "kite"]),
        ("A woman's umbrella, a child's bike and two skis.", ["person", "umbrella", "person", "bicycle", "skis"]),
        ("It is 12 o'clock on the cat's clock.", ["cat", "clock"]),
    ],
)
def test_captions_name_the_official_objects(caption: str, objects: list[str]) -> None:
    assert NAMES.find(caption) == objects


def test_chair_counts_every_mention() -> None:
    """Source: compute_chair of the same file: 2 of 5 mentions, 1 of 2 sentences."""
    counts = total(
        [
            count_objects("A dog, a cat and another cat.", ["dog"], NAMES),
            count_objects("A man rides a horse.", ["person", "horse"], NAMES),
        ]
    )
    figures = {name: metric(counts) for name, metric in TASKS["chair"].metrics.items()}
    assert figures == pytest.approx({"chair_i": 2 / 5, "chair_s": 1 / 2})


@given(st.lists(st.sampled_from(["dog", "traffic light", "tv", "bus", "person", "skis"]), max_size=6))
def test_a_truthful_caption_hallucinates_nothing(objects: list[str]) -> None:
    counts = count_objects("; ".join(f"a {name}" for name in objects), objects, NAMES)
    assert (counts["mentioned"], counts["hallucinated"], counts["wrong_sentences"]) == (len(objects), 0, 0)


def test_all_80_categories_have_their_own_name() -> None:
    lines = (Path(__file__).parents[2] / "minigpt4_serve/evaluation/coco_objects.txt").read_text().splitlines()
    assert len(lines) == 80
    own = ObjectNames([line.split(", ") for line in lines])
    assert [own.find(line.split(",")[0]) for line in lines] == [[line.split(",")[0]] for line in lines]
