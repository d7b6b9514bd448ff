"""Fields of any server's JSON: what has a wrong type counts as missing."""

from typing import Any

import pytest

from minigpt4_serve.client.json_fields import get_int, get_mapping, get_number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.5, 0.5),
        (3, 3.0),
        ("1.5", 1.5),
        (-2, 0.0),
        (None, None),
        (True, None),
        ([1], None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        (float("inf"), None),
        (10**400, None),
    ],
)
def test_numbers(value: Any, number: float | None) -> None:
    assert get_number({"field": value}, "field") == number


@pytest.mark.parametrize(("value", "number"), [(3, 3), (0, 0), (-1, None), (True, None), (1.0, None), ("3", None)])
def test_integers(value: Any, number: int | None) -> None:
    assert get_int({"field": value}, "field") == number


def test_absent_fields_and_other_objects() -> None:
    assert get_number({}, "field") is None
    assert get_int({}, "field") is None
    assert get_mapping({}, "field") == get_mapping({"field": [1]}, "field") == {}
    assert get_mapping({"field": {"a": 1}}, "field") == {"a": 1}
