"""A comparison of numbers or of exact values with the original's, as a line of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Comparison", "exact_matches", "largest_error"]


@dataclass(frozen=True)
class Comparison:
    """Either the largest error of numbers, which may be up to ``limit``, or a count of exact matches."""

    stage: str
    error: float | None = None
    limit: float = 0.0
    matched: int = 0
    total: int = 0
    variant: str = ""
    attention: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is within its tolerance."""
        return self.matched == self.total if self.error is None else self.error <= self.limit

    @property
    def compares_something(self) -> bool:
        """False for a count without pairs."""
        return self.error is not None or self.total > 0

    def __str__(self) -> str:
        value = f"{self.matched}/{self.total}" if self.error is None else f"{self.error:.1e} ≤ {self.limit:.0e}"
        return (
            f"{self.variant:<10} {self.attention:<6} {self.stage:<34} {value:>18}  {'ok' if self.holds else 'FAILED'}"
        )


def largest_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference; infinite if the shapes or the infinities differ."""
    if ours.shape != theirs.shape or not torch.equal(ours.isfinite(), theirs.isfinite()):
        return float("inf")
    return float((ours - theirs)[theirs.isfinite()].abs().max()) if theirs.numel() else 0.0


def exact_matches(stage: str, pairs: Sequence[tuple[Any, Any]]) -> Comparison:
    """Count the pairs of (ours, the original's) that are equal."""
    return Comparison(stage, matched=len([ours for ours, theirs in pairs if ours == theirs]), total=len(pairs))
