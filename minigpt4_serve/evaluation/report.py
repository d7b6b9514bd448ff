"""The results of a run: ``report.json``, ``report.md``, ``scores.jsonl``, ``worst.html``, ``reliability.svg``."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4_serve.evaluation.answer_log import AnswerRecord, write_json
from minigpt4_serve.evaluation.calibration import as_record, calibrate, draw_reliability
from minigpt4_serve.evaluation.image_preview import preview_url
from minigpt4_serve.evaluation.intervals import estimate
from minigpt4_serve.evaluation.questions import Question
from minigpt4_serve.evaluation.tasks import Counts, Scorer, Task

__all__ = ["REPORT", "SCORES", "ScoredAnswer", "score_answers", "write_report"]

REPORT = "report.json"
SCORES = "scores.jsonl"
_WORST = 50
_QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with its counts, and its value 0 … 1 by the task's main metric."""

    question: Question
    record: AnswerRecord
    counts: Counts
    value: float


def score_answers(
    task: Task, scorer: Scorer, questions: Sequence[Question], records: Mapping[str, AnswerRecord]
) -> list[ScoredAnswer]:
    """Score all questions; one without an answer counts as an empty answer."""
    scored = []
    for question in questions:
        record = records.get(question.id) or AnswerRecord(question.id, error="not asked")
        counts = scorer(question, record.answer)
        scored.append(ScoredAnswer(question, record, counts, task.value(counts)))
    return scored


def write_report(
    folder: Path, task: Task, run: Mapping[str, Any], scored: Sequence[ScoredAnswer], session: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all files of the results.

    Args:
        run: what ``run.json`` holds.
        session: what this start did: questions asked, seconds.

    Returns:
        What ``report.json`` holds.
    """
    report: dict[str, Any] = {
        "task": run["task"],
        "model": run["model"],
        "options": run["options"],
        "questions": len(scored),
        "failed": sum(one.record.error is not None for one in scored),
        "truncated": sum(one.record.finish_reason == "length" for one in scored),
        **_figures(task, scored),
        "splits": _splits(task, scored),
        "seconds_per_question": _timings([one.record.seconds for one in scored if one.record.error is None]),
        "ttft_s": _timings([one.record.ttft_s for one in scored if one.record.ttft_s is not None]),
        "completion_tokens": sum(one.record.completion_tokens or 0 for one in scored),
        "session": dict(session),
    }
    certain = [(one.record.certainty, one.value) for one in scored if one.record.certainty is not None]
    if certain:
        bins = calibrate([certainty for certainty, _ in certain], [value for _, value in certain])
        report["calibration"] = as_record(bins)
        (folder / "reliability.svg").write_text(draw_reliability(bins), encoding="utf-8")
    (folder / SCORES).write_text("".join(_score_line(one) for one in scored), encoding="utf-8")
    (folder / "worst.html").write_text(_worst_page(task, scored), encoding="utf-8")
    (folder / "report.md").write_text(_markdown(task, report), encoding="utf-8")
    write_json(folder / REPORT, report)
    return report


def _figures(task: Task, scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    found = estimate([one.counts for one in scored], [one.question.group for one in scored], task.metrics)
    return {
        "metrics": {name: one.value for name, one in found.items()},
        "intervals": {name: one.interval for name, one in found.items()},
    }


def _splits(task: Task, scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    parts: dict[str, list[ScoredAnswer]] = {}
    for one in scored:
        parts.setdefault(one.question.split, []).append(one)
    splits = {}
    for name, part in parts.items():
        if name:
            figures = _figures(task, part)
            splits[name] = {"questions": len(part), **figures["metrics"], "intervals": figures["intervals"]}
    return splits


def _timings(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {name: ordered[min(int(level * len(ordered)), len(ordered) - 1)] for name, level in _QUANTILES.items()}


def _score_line(one: ScoredAnswer) -> str:
    question = one.question
    fields = {"id": question.id, "group": question.group, "split": question.split, "value": one.value}
    return json.dumps({**fields, "counts": one.counts, "answer": one.record.answer}, ensure_ascii=False) + "\n"


def _markdown(task: Task, report: Mapping[str, Any]) -> str:
    rows = [("all", report["questions"], report["metrics"], report["intervals"])]
    rows += [(name, split["questions"], split, split["intervals"]) for name, split in report["splits"].items()]
    names = list(task.metrics)
    lines = [
        f"# {task.title}: {report['model']}",
        "",
        f"{report['questions']} questions, {report['failed']} without an answer (they count as an empty one), "
        f"{report['truncated']} cut at the longest answer. {task.rule}",
        "",
        f"| | questions | {' | '.join(names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
        *(
            f"| {name} | {count} | {' | '.join(_cell(metrics[one], intervals[one]) for one in names)} |"
            for name, count, metrics, intervals in rows
        ),
        "",
        "In percent, with 95 % intervals of the bootstrap over images.",
        "",
        *_timing_lines(report),
    ]
    if calibration := report.get("calibration"):
        error = calibration["expected_error"]
        lines += [
            "## Calibration",
            "",
            f"{calibration['answers']} answers have a certainty; expected calibration error {100 * error:.1f} %.",
            "",
            "| certainty | answers | mean certainty | right |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {low:.1f}–{high:.1f} | {answers} | {certainty:.2f} | {accuracy:.2f} |"
                for low, high, answers, certainty, accuracy in (one.values() for one in calibration["bins"])
            ),
            "",
            "![Reliability curve](reliability.svg)",
            "",
        ]
    lines += ["[The worst answers with their images](worst.html)", ""]
    return "\n".join(lines)


def _timing_lines(report: Mapping[str, Any]) -> list[str]:
    rows = [("whole answer", report["seconds_per_question"]), ("first text", report["ttft_s"])]
    return [
        "| seconds | median | p95 | p99 |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {t['median']:.3f} | {t['p95']:.3f} | {t['p99']:.3f} |" for name, t in rows if t),
        "",
    ]


def _cell(value: float | None, interval: Sequence[float | None]) -> str:
    if value is None:
        return "–"
    low, high = interval
    if low is None or high is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({100 * low:.1f} … {100 * high:.1f})"


def _worst_page(task: Task, scored: Sequence[ScoredAnswer]) -> str:
    wrong = sorted((one for one in scored if one.value < 1), key=lambda one: one.value)[:_WORST]
    articles = "".join(_worst_article(one) for one in wrong)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(task.title)}: worst answers</title>'
        "<style>body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "article{display:flex;gap:1em;margin:1em 0;border-top:1px solid #ccc;padding-top:1em}"
        "img{max-width:320px;max-height:320px}dt{color:#666}dd{margin:0 0 .6em;white-space:pre-wrap}</style>"
        f"<h1>{html.escape(task.title)}: the {len(wrong)} worst of {len(scored)} answers</h1>{articles}</html>\n"
    )


def _worst_article(one: ScoredAnswer) -> str:
    truth = one.question.truth
    rows = {
        "question": one.question.prompt,
        "answer": one.record.answer if one.record.error is None else f"none ({one.record.error})",
        "right": truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False),
        "value": f"{one.value:.2f}",
        "id": one.question.id,
    }
    terms = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in rows.items())
    return f'<article><img alt="" src="{preview_url(one.question, one.record.answer)}"><dl>{terms}</dl></article>'
