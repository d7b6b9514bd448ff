"""The catalog of texts."""

import string
from pathlib import Path

import pytest
import yaml
from minigpt4_bots.core.texts import Texts, choose_language, is_progress_line, languages


def test_all_languages_say_the_same_things() -> None:
    folder = Path(__file__).parents[3] / "bots" / "minigpt4_bots" / "core" / "texts"
    catalogue = {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    assert set(catalogue) == set(languages()) == {"en", "zh"}

    def blanks(texts: dict[str, str]) -> dict[str, set[str | None]]:
        return {name: {blank for _, blank, _, _ in string.Formatter().parse(text)} for name, text in texts.items()}

    assert {name: found - {None} for name, found in blanks(catalogue["zh"]).items()} == {
        name: found - {None} for name, found in blanks(catalogue["en"]).items()
    }


@pytest.mark.parametrize(
    ("setting", "spoken", "language"),
    [("auto", "zh-CN", "zh"), ("auto", "pt_BR", "en"), ("auto", None, "en"), ("zh", "en", "zh"), ("en", "zh", "en")],
)
def test_each_person_reads_their_language(setting: str, spoken: str | None, language: str) -> None:
    assert choose_language(setting, spoken) == language


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (8, "8 s"), (8.4, "9 s"), (89, "89 s"), (100, "2 min"), (3600, "60 min"), (18_100, "6 h")],
)
def test_waits_are_rounded_up_in_words(seconds: float, text: str) -> None:
    assert Texts("en").describe_wait(seconds) == text


@pytest.mark.parametrize("language", languages())
def test_progress_lines_differ_from_answers(language: str) -> None:
    texts = Texts(language)
    for name in ("looking", "waiting", "waiting_time", "next", "full"):
        assert is_progress_line(texts(f"progress.{name}", ahead=3, wait="8 s"))
    assert not is_progress_line("I see a cat.")
    assert not is_progress_line(f"{texts('button.stop')} I see a cat.")
