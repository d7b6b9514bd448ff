"""Confidence intervals by the bootstrap.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals. Whole groups, usually the
questions about one image, are resampled, since their answers depend on each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt4_serve.evaluation.tasks import Counts, Metric

if TYPE_CHECKING:
    import numpy

__all__ = ["Estimate", "estimate", "estimate_difference", "total"]

RESAMPLES = 1000
_SEED = 0
_LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where it isn't defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float | None]:
        """[low, high]."""
        return [self.low, self.high]


def total(counts: Sequence[Counts]) -> dict[str, float]:
    """The sum of each count."""
    return {name: sum(one[name] for one in counts) for name in (counts[0] if counts else ())}


def estimate(counts: Sequence[Counts], groups: Sequence[str], metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Each metric with its interval; the same for the same counts.

    Args:
        counts: of each question.
        groups: the group of each question.
    """
    samples = _resample([_grouped(counts, groups)])
    sums = total(counts)
    return {name: _estimate(metric(sums), [metric(one) for (one,) in samples]) for name, metric in metrics.items()}


def estimate_difference(
    first: Sequence[Counts], second: Sequence[Counts], groups: Sequence[str], metrics: Mapping[str, Metric]
) -> dict[str, Estimate]:
    """Each metric of ``second`` minus that of ``first``, with the interval of paired resampling.

    Args:
        first, second: counts of two runs' answers to the same questions, in the same order.
        groups: the group of each question.
    """
    samples = _resample([_grouped(first, groups), _grouped(second, groups)])
    sums = (total(first), total(second))
    return {
        name: _estimate(_change(metric, *sums), [_change(metric, one, two) for one, two in samples])
        for name, metric in metrics.items()
    }


_Grouped = tuple[list[str], "numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float64]]"]


def _grouped(counts: Sequence[Counts], groups: Sequence[str]) -> _Grouped:
    """Names of the counts, and their sums by group ``[groups, counts]``."""
    import numpy

    names = list(counts[0]) if counts else []
    rows = {group: row for row, group in enumerate(dict.fromkeys(groups))}
    sums = numpy.zeros((len(rows), len(names)))
    for one, group in zip(counts, groups, strict=True):
        sums[rows[group]] += [one[name] for name in names]
    return names, sums


def _resample(runs: Sequence[_Grouped]) -> list[tuple[dict[str, float], ...]]:
    """Sums over groups drawn with replacement, the same groups for every run, ``RESAMPLES`` times."""
    import numpy

    rng = numpy.random.default_rng(_SEED)
    number = len(runs[0][1])
    samples = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, max(number, 1), number)
        weights = numpy.bincount(drawn, minlength=number)
        samples.append(tuple(dict(zip(names, (weights @ sums).tolist(), strict=True)) for names, sums in runs))
    return samples


def _change(metric: Metric, first: Counts, second: Counts) -> float | None:
    before = metric(first)
    after = metric(second)
    return None if before is None or after is None else after - before


def _estimate(value: float | None, samples: Sequence[float | None]) -> Estimate:
    import numpy

    defined = [sample for sample in samples if sample is not None]
    if value is None or not defined:
        return Estimate(value, None, None)
    low, high = numpy.quantile(defined, _LEVELS).tolist()
    return Estimate(value, low, high)
