"""Lenient access to the fields of other servers' JSON."""

from collections.abc import Mapping
from typing import Any

__all__ = ["get_int", "get_mapping", "get_number"]


def get_mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object of this name; empty if there is none."""
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def get_number(values: Mapping[str, Any], name: str) -> float | None:
    """The number of this name, in a text too, at least 0; None if there is none."""
    try:
        return max(0.0, float(values[name]))
    except (KeyError, TypeError, ValueError):
        return None


def get_int(values: Mapping[str, Any], name: str) -> int | None:
    """The integer of this name; None if there is none or it is negative."""
    value = values.get(name)
    return value if isinstance(value, int) and value >= 0 else None
