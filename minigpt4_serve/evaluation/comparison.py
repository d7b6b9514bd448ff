"""Which of two runs of the same task is better, with paired bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.evaluation.answer_log import read_json_lines, read_run
from minigpt4_serve.evaluation.intervals import Estimate, estimate_difference, total
from minigpt4_serve.evaluation.report import SCORES
from minigpt4_serve.evaluation.tasks import Task, find_task

__all__ = ["Comparison", "compare_runs"]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the questions that both have.

    Attributes:
        questions: how many both have; ``only_first`` and ``only_second`` are left out.
        first, second: figures of the runs on these questions.
        differences: second minus first.
        better: ``first``, ``second``, or None if the main metric's interval includes 0.
        changed: questions whose answers are worth more in one run: (first, second).
    """

    task: str
    questions: int
    only_first: int
    only_second: int
    first: Mapping[str, float | None]
    second: Mapping[str, float | None]
    differences: Mapping[str, Estimate]
    better: str | None
    changed: tuple[int, int]

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task,
            "questions": self.questions,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "better": self.better,
            "first_better_on": self.changed[0],
            "second_better_on": self.changed[1],
            "metrics": {
                name: {
                    "first": self.first[name],
                    "second": self.second[name],
                    "difference": found.value,
                    "interval": found.interval,
                }
                for name, found in self.differences.items()
            },
        }

    def describe(self, first: str, second: str) -> str:
        """A verdict and a Markdown table, with these names for the runs."""
        task = find_task(self.task)
        named = {"first": first, "second": second}
        verdict = (
            f"No difference is shown: the interval of {task.main_metric} includes 0."
            if self.better is None
            else f"{named[self.better]} is better: the interval of {task.main_metric} excludes 0."
        )
        lines = [
            f"{task.title}, {self.questions} questions in both runs "
            f"({self.only_first} only in the first, {self.only_second} only in the second). {verdict}",
            "",
            f"| | {first} | {second} | difference, 95 % interval |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, found in self.differences.items():
            row = [_percent(self.first[name]), _percent(self.second[name]), _signed(found)]
            lines.append(f"| {name} | {' | '.join(row)} |")
        lines += ["", f"{first} is better on {self.changed[0]} questions, {second} on {self.changed[1]}."]
        return "\n".join(lines)


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare the runs of two output folders.

    Raises:
        InvalidRequest: a folder holds no finished run, or the runs are of different tasks or share no question.
    """
    name, first_scores = _read_scores(first)
    other, second_scores = _read_scores(second)
    if name != other:
        raise InvalidRequest(f"{first} is a run of {name}, {second} one of {other}; only runs of one task compare.")
    task = find_task(name)
    shared = [key for key in first_scores if key in second_scores]
    if not shared:
        raise InvalidRequest(f"{first} and {second} have no question in common.")
    one = [first_scores[key] for key in shared]
    two = [second_scores[key] for key in shared]
    groups = [str(score["group"]) for score in one]
    counts = [[score["counts"] for score in scores] for scores in (one, two)]
    differences = estimate_difference(counts[0], counts[1], groups, task.metrics)
    values = [(before["value"], after["value"]) for before, after in zip(one, two, strict=True)]
    return Comparison(
        task=name,
        questions=len(shared),
        only_first=len(first_scores) - len(shared),
        only_second=len(second_scores) - len(shared),
        first={key: metric(total(counts[0])) for key, metric in task.metrics.items()},
        second={key: metric(total(counts[1])) for key, metric in task.metrics.items()},
        differences=differences,
        better=_better(task, differences[task.main_metric]),
        changed=(sum(before > after for before, after in values), sum(before < after for before, after in values)),
    )


def _better(task: Task, difference: Estimate) -> str | None:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return None
    return "second" if (difference.low > 0) != task.lower_is_better else "first"


def _read_scores(folder: Path) -> tuple[str, dict[str, Mapping[str, Any]]]:
    run = read_run(folder)
    path = folder / SCORES
    if not run or not path.is_file():
        raise InvalidRequest(f"{folder} holds no finished run of `minigpt4 evaluate`.")
    return str(run["task"]), {score["id"]: score for score in read_json_lines(path)}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _signed(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "–"
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} … {100 * found.high:+.1f})"
