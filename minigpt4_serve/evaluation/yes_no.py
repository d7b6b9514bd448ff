"""Yes and no in answers, and what POPE counts.

Source: POPE's ``evaluate.py`` (github.com/RUCAIBox/POPE): the first sentence decides; it means no if one of its words
is ``No``, ``no`` or ``not``, and yes otherwise.
"""

from collections.abc import Mapping

__all__ = ["accuracy", "count_outcome", "f1", "precision", "recall", "says_no", "yes_share"]

_NEGATIVE = {"No", "no", "not"}

Totals = Mapping[str, float]
"""Sums of ``count_outcome`` over questions."""


def says_no(answer: str) -> bool:
    """Whether POPE takes the answer for a no."""
    first_sentence = answer.partition(".")[0].replace(",", "")
    return not _NEGATIVE.isdisjoint(first_sentence.split(" "))


def count_outcome(answer: str, *, truth: bool) -> dict[str, float]:
    """One question's true and false positives and negatives; yes is positive."""
    given = not says_no(answer)
    return {
        "true_positive": float(given and truth),
        "false_positive": float(given and not truth),
        "true_negative": float(not given and not truth),
        "false_negative": float(not given and truth),
    }


def accuracy(totals: Totals) -> float | None:
    """Share of right answers."""
    return _ratio(totals["true_positive"] + totals["true_negative"], sum(totals.values()))


def precision(totals: Totals) -> float | None:
    """Share of the answers yes that are right; None if there is no yes."""
    return _ratio(totals["true_positive"], totals["true_positive"] + totals["false_positive"])


def recall(totals: Totals) -> float | None:
    """Share of the questions with yes as the truth that are answered yes; None if there are none."""
    return _ratio(totals["true_positive"], totals["true_positive"] + totals["false_negative"])


def f1(totals: Totals) -> float | None:
    """Harmonic mean of precision and recall; None if there is neither a yes nor a question for it."""
    wrong = totals["false_positive"] + totals["false_negative"]
    return _ratio(2 * totals["true_positive"], 2 * totals["true_positive"] + wrong)


def yes_share(totals: Totals) -> float | None:
    """Share of answers yes."""
    return _ratio(totals["true_positive"] + totals["false_positive"], sum(totals.values()))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
