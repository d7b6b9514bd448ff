"""How well a model's certainty predicts that its answers are right: the reliability curve.

Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017): bins of equal width, and the expected
calibration error, which is the mean distance between certainty and accuracy, weighted by the bins' sizes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ReliabilityBin", "as_record", "calibrate", "draw_reliability", "expected_error"]

BINS = 10
_SIZE = 320
_MARGIN = 40


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers with a certainty in ``low … high``: how many, their mean certainty, and the share that is right."""

    low: float
    high: float
    answers: int
    certainty: float
    accuracy: float


def calibrate(certainties: Sequence[float], values: Sequence[float]) -> list[ReliabilityBin]:
    """The bins that hold answers, least certain first.

    Args:
        certainties: of each answer, 0 … 1.
        values: how right each answer is, 0 … 1.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for certainty, value in zip(certainties, values, strict=True):
        bins.setdefault(min(int(certainty * BINS), BINS - 1), []).append((certainty, value))
    return [
        ReliabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            answers=len(held),
            certainty=sum(certainty for certainty, _ in held) / len(held),
            accuracy=sum(value for _, value in held) / len(held),
        )
        for number, held in sorted(bins.items())
    ]


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error, 0 … 1."""
    answers = sum(one.answers for one in bins)
    return sum(one.answers * abs(one.certainty - one.accuracy) for one in bins) / answers


def as_record(bins: Sequence[ReliabilityBin]) -> dict[str, Any]:
    """For ``report.json``."""
    answers = sum(one.answers for one in bins)
    return {"answers": answers, "expected_error": expected_error(bins), "bins": [asdict(one) for one in bins]}


def draw_reliability(bins: Sequence[ReliabilityBin]) -> str:
    """The curve as SVG: certainty to the right, accuracy upward, and the diagonal of perfect calibration."""
    points = [(_MARGIN + one.certainty * _SIZE, _MARGIN + (1 - one.accuracy) * _SIZE) for one in bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#4363d8"/>' for x, y in points)
    side = _SIZE + 2 * _MARGIN
    end = _MARGIN + _SIZE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" font-family="sans-serif" font-size="12">'
        f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIZE}" height="{_SIZE}" fill="white" stroke="#888"/>'
        f'<line x1="{_MARGIN}" y1="{end}" x2="{end}" y2="{_MARGIN}" stroke="#aaa" stroke-dasharray="4"/>'
        f'<polyline points="{line}" fill="none" stroke="#4363d8" stroke-width="2"/>{dots}'
        f'<text x="{side / 2}" y="{side - 10}" text-anchor="middle">certainty, 0 to 1</text>'
        f'<text x="14" y="{side / 2}" text-anchor="middle" transform="rotate(-90 14 {side / 2})">right, 0 to 1</text>'
        "</svg>\n"
    )
