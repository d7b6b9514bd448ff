"""The answers of a run on disk: one JSON object a line, each written as soon as its answer is complete."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from minigpt4_serve.errors import InvalidRequest

__all__ = ["AnswerLog", "AnswerRecord", "read_answers", "read_json_lines", "read_run", "write_json", "write_run"]

ANSWERS = "answers.jsonl"
_RUN = "run.json"
_SAME_RUN = {"task": "task", "model": "model", "questions": "questions or prompts", "options": "options"}


@dataclass(frozen=True)
class AnswerRecord:
    """One answer.

    Attributes:
        id: of the question.
        answer: its text; empty if ``error`` is set.
        error: why there is no answer; the next start asks again.
        seconds, ttft_s: from the request to the answer's end, and to its first text.
        finish_reason, prompt_tokens, completion_tokens, timings: as the server reports them.
        certainty: 0 … 1, of models that state it.
    """

    id: str
    answer: str = ""
    error: str | None = None
    seconds: float = 0.0
    ttft_s: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    timings: Mapping[str, float] | None = None
    certainty: float | None = None


class AnswerLog:
    """Appends answers to a run's file. A process that is killed loses only answers that weren't complete."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ANSWERS

    def __enter__(self) -> Self:
        _drop_partial_line(self._path)
        self._file = self._path.open("ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, record: AnswerRecord) -> None:
        """Write one answer, in a single system call."""
        fields = {name: value for name, value in asdict(record).items() if value is not None}
        self._file.write(json.dumps(fields, ensure_ascii=False).encode("utf-8") + b"\n")


def read_answers(folder: Path) -> dict[str, AnswerRecord]:
    """The latest record of each question; an answer is never replaced by an error.

    Raises:
        InvalidRequest: the file is damaged.
    """
    records: dict[str, AnswerRecord] = {}
    path = folder / ANSWERS
    for fields in read_json_lines(path):
        try:
            record = AnswerRecord(**fields)
        except TypeError as error:
            raise InvalidRequest(f"{path} is damaged; choose another --output.") from error
        if record.error is None or record.id not in records:
            records[record.id] = record
    return records


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Record what a folder's answers belong to, or check that it is the same as before.

    Raises:
        InvalidRequest: the folder holds answers of another run, or can't be written.
    """
    before = read_run(folder)
    for key, words in _SAME_RUN.items():
        if before and before.get(key) != run.get(key):
            raise InvalidRequest(f"{folder} holds answers of a run with other {words}; choose another --output.")
    if not before:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _RUN, run)
        except OSError as error:
            raise InvalidRequest(f"{folder} can't be written; choose another --output.") from error


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write_run`` recorded; empty if there is nothing.

    Raises:
        InvalidRequest: the file is damaged.
    """
    path = folder / _RUN
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} is damaged; choose another --output.") from error
    return run if isinstance(run, dict) else {}


def read_json_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The objects of the file's complete lines; none if there is no file.

    Raises:
        InvalidRequest: a line is damaged.
    """
    if not path.is_file():
        return
    *lines, _partial = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{path} is damaged: a line isn't JSON.") from error


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _drop_partial_line(path: Path) -> None:
    """Cut what a killed process left after the last complete line."""
    if not path.is_file():
        return
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        with path.open("r+b") as file:
            file.truncate(complete)
