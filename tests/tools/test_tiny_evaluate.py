"""The evaluation: its table, and the selection of questions."""

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from minigpt4_serve.settings import TINY_MODEL
from tools.tiny import evaluate
from tools.tiny.evaluate import evaluation_set, exact_share, print_table
from tools.tiny.questions import Dialogue
from tools.tiny.wordings import HELD_OUT

MODEL: Any = object()


def _table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], each: int, answer: Any) -> list[str]:
    def answers(model: Any, processor: Any, pairs: Sequence[tuple[Image.Image, Dialogue]]) -> list[str]:
        return [answer(image, dialogue) for image, dialogue in pairs]

    monkeypatch.setattr(evaluate, "answers", answers)
    print_table(MODEL, MODEL, each)
    return capsys.readouterr().out.splitlines()


def test_a_model_that_is_always_right_scores_100(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _table(monkeypatch, capsys, 3, lambda image, dialogue: dialogue.answer)
    assert lines == [
        "| kind | exact | questions |",
        "|---|---|---|",
        "| color | 100.0% | 3 |",
        "| which thing | 100.0% | 3 |",
        "| how many in all | 100.0% | 3 |",
        "| exists | 100.0% | 3 |",
        "| where | 100.0% | 3 |",
        "| background | 100.0% | 3 |",
        "| follow-ups | 100.0% | 3 |",
        "| biggest, smallest | 100.0% | 6 |",
        "| how many X | 100.0% | 3 |",
        "| relation, yes or no | 100.0% | 3 |",
        "| is X of that color | 100.0% | 3 |",
        "| what is left, right, above, below | 100.0% | 3 |",
        "| short description | 100.0% | 3 |",
        "| caption | 100.0% | 3 |",
        "| detailed description | 100.0% | 3 |",
        "| refusal | 100.0% | 3 |",
        "| greeting | 100.0% | 3 |",
        "| held-out wordings, mean | 100.0% | 18 |",
        "| held-out wordings, refusals and greetings | 100.0% | |",
        *[line for line in lines if line.startswith("held-out wordings by kind: ")],
        "| independent wordings, mean | 100.0% | 18 |",
        "| independent wordings, refusals and greetings | 100.0% | |",
        *[line for line in lines if line.startswith("independent wordings by kind: ")],
        "| alternative renderer, factual kinds | 100.0% | 48 |",
        "| wrong image, factual kinds | 100.0% | 32 |",
        "| blank image, factual kinds | 100.0% | 48 |",
    ]


def test_the_models_readme_has_the_rows_of_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (TINY_MODEL / "README.md").read_text(encoding="utf-8").splitlines()
    printed = _table(monkeypatch, capsys, 2, lambda image, dialogue: dialogue.answer)
    names, in_readme = ([line.split(" | ")[0] for line in lines if line[:2] == "| "] for lines in (printed, readme))
    assert len(names) == 25
    assert in_readme == names


def test_each_row_uses_its_own_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def right_if_blank(image: Image.Image, dialogue: Dialogue) -> str:
        return dialogue.answer if image.getextrema() == ((255, 255),) * 3 else ""

    rows = dict(row.split(" | ")[:2] for row in _table(monkeypatch, capsys, 2, right_if_blank) if row[:2] == "| ")
    assert {name for name, share in rows.items() if share == "100.0%"} == {"| blank image, factual kinds"}
    assert {share for name, share in rows.items() if "blank" not in name} == {"exact", "0.0%"}


def test_the_share_counts_exact_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = evaluation_set("color", 4)
    texts = [question.dialogue.answer for question in questions]
    monkeypatch.setattr(evaluate, "answers", lambda *_: [*texts[:3], "The star is plaid."])
    assert exact_share(MODEL, MODEL, questions, [Image.new("RGB", (1, 1))] * 4) == 0.75


def test_sets_are_reproducible_and_differ_by_seed() -> None:
    assert evaluation_set("where", 5) == evaluation_set("where", 5)
    assert evaluation_set("where", 5) != evaluation_set("where", 5, seed="test")
    assert evaluation_set("where", 5)[0].scene != evaluation_set("where", 5, HELD_OUT)[0].scene


def test_follow_ups_need_the_image() -> None:
    for question in evaluation_set("follow_up", 60):
        *earlier, (_, last) = question.dialogue.turns
        assert not any(last.rstrip(".").split()[-1] in answer for _, answer in earlier)
