"""Lenient access to JSON fields and headers of any OpenAI-compatible server: a wrong type counts as missing."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["get_int", "get_mapping", "get_number"]


def get_mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object at ``name``; empty if there is none."""
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def get_number(values: Mapping[str, Any], name: str) -> float | None:
    """The finite number at ``name``, which may be a string; 0 if it is negative, None if there is none."""
    value: Any = values.get(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, number) if math.isfinite(number) else None


def get_int(values: Mapping[str, Any], name: str) -> int | None:
    """The integer at ``name``; None if there is none or it is negative."""
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
