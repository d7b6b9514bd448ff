"""Durations in words, for people and agents."""

import math

__all__ = ["describe_wait"]


def describe_wait(wait_s: float) -> str:
    """A wait in words, rounded up so that a retry isn't early: ``33 seconds``, ``12 hours``; at least ``1 second``."""
    if wait_s <= 1:
        return "1 second"
    for limit_s, unit_s, name in ((90, 1, "seconds"), (90 * 60, 60, "minutes"), (48 * 3600, 3600, "hours")):
        if wait_s < limit_s:
            return f"{math.ceil(wait_s / unit_s)} {name}"
    return f"{math.ceil(wait_s / 86400)} days"
