"""Circles of imports are found, whatever their length."""

import pytest

from tools import import_circles


def test_modules_without_a_circle_give_none() -> None:
    assert import_circles.find_circles({"a": {"b", "c"}, "b": {"c"}, "c": {"outside"}}) == []


def test_each_circle_is_reported_once_with_its_modules() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert import_circles.find_circles(imports) == [["a", "b", "c"], ["d", "e"]]


def test_the_graph_holds_modules_of_all_packages() -> None:
    imports = import_circles.import_graph()
    assert "minigpt4_serve.errors" in imports["minigpt4_serve.images.validation"]
    assert {module.split(".")[0] for module in imports} == set(import_circles.PACKAGES)


def test_a_circle_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(import_circles, "import_graph", lambda: {"a": {"b"}, "b": {"a"}})
    assert import_circles.main() == 1
    assert "a ↔ b" in capsys.readouterr().out
