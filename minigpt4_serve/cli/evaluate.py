"""``minigpt4 evaluate``: benchmarks of a model in this process or on any OpenAI-compatible server, and comparisons."""

import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4_serve.cli.options import MODEL_VARIABLE, KeyOption, MaxTokensOption, ModelOption, ServerOption
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error
from minigpt4_serve.evaluation import TASKS
from minigpt4_serve.settings import TINY_MODEL, EngineSettings, ModelSettings, ServeSettings

if TYPE_CHECKING:
    from minigpt4_serve.cli.sources import LocalModel
    from minigpt4_serve.client import Event
    from minigpt4_serve.evaluation.answer_log import AnswerRecord
    from minigpt4_serve.evaluation.layouts import DataFolder

__all__ = ["evaluate"]

evaluate = typer.Typer(
    help="Run benchmarks on a model; compare two runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PATIENCE_S = 600.0
_TIMEOUT_S = 600.0
_PROGRESS_STEPS = 10
_MAX_RUNNING = 128
_NO_PENALTY = {"repetition_penalty": 1.0}
"""As in the original's evaluation; its demos, and so models' defaults, use 1.05."""

DataOption = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="The data set, in its published layout: docs/evaluation.md.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="Answers and report; a second start continues them.")
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", metavar="DIR", help="The images, if they aren't in the data folder.")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Ask only the first questions of each split.", show_default="all"),
]
InFlightOption = Annotated[
    int, typer.Option("--in-flight", metavar="N", min=1, max=1024, help="Requests at the same time.")
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt", metavar="TEXT", help="Replaces the task's prompt; {} is the question.", show_default="as published"
    ),
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="FIELD", help="NAME=VALUE sets a field of every request, as JSON or text."),
]
SheetOption = Annotated[bool, typer.Option("--sheet", help="Write sheet.html, in which people rate the answers.")]


def _add_task(name: str) -> None:
    @evaluate.command(name, help=f"Benchmark: {TASKS[name].title}.\n\n{TASKS[name].rule}")
    def run_task(
        data: DataOption,
        output: OutputOption,
        server: ServerOption = None,
        api_key: KeyOption = None,
        model: ModelOption = TINY_MODEL,
        images: ImagesOption = None,
        limit: LimitOption = None,
        in_flight: InFlightOption = 32,
        prompt: PromptOption = None,
        max_tokens: MaxTokensOption = None,
        option: FieldOption = None,
        sheet: SheetOption = False,
    ) -> None:
        import asyncio

        import_module("numpy")  # a missing extra fails here, not after all answers
        from minigpt4_serve.evaluation.layouts import DataFolder

        folder = DataFolder(data, images=images, prompt=prompt)
        fields = {"max_tokens": max_tokens or TASKS[name].max_tokens, "temperature": 0.0, **_read_fields(option or [])}
        subject = _RemoteSubject(server, api_key) if server else _LocalSubject(model, in_flight)
        asyncio.run(_measure(name, folder, output, subject, fields, limit=limit, in_flight=in_flight, sheet=sheet))


for _name in TASKS:
    _add_task(_name)


@evaluate.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", show_default=False, help="The --output of one run.")],
    second: Annotated[Path, typer.Argument(metavar="B", show_default=False, help="That of another run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say which of two runs of a task is better.

    Differences have paired bootstrap intervals.
    """
    from minigpt4_serve.evaluation.comparison import compare_runs

    found = compare_runs(first, second)
    typer.echo(json.dumps(found.as_record(), indent=2) if as_json else found.describe(str(first), str(second)))


class _RemoteSubject:
    """A model of a server."""

    def __init__(self, server: str, api_key: str | None) -> None:
        from pydantic import SecretStr

        from minigpt4_serve.client import ChatClient

        key = SecretStr(api_key) if api_key else None
        self._has_key = key is not None
        model = os.environ.get(MODEL_VARIABLE)
        self._client = ChatClient(server, key, model=model, timeout_s=_TIMEOUT_S, patience_s=_PATIENCE_S)

    async def open(self) -> tuple[str, dict[str, Any]]:
        """The model's name, and fields of requests that this kind of server needs for plain greedy decoding."""
        card = await self._client.card()
        # Only minigpt4-serve states a context length; other servers may refuse fields that OpenAI's API lacks.
        return card.name, dict(_NO_PENALTY) if card.context_length is not None else {}

    def load(self) -> None:
        """The server has loaded it."""

    def ask(self, messages: "Sequence[Mapping[str, Any]]", **fields: Any) -> "AsyncGenerator[Event]":
        return self._client.answer(messages, **fields)

    def describe(self, error: MiniGPT4Error) -> str:
        from minigpt4_serve.cli.sources import describe_failure

        return describe_failure(error, self._client.base_url, self._has_key)

    async def close(self) -> None:
        await self._client.aclose()


class _LocalSubject:
    """A model in this process."""

    def __init__(self, path: Path, in_flight: int) -> None:
        engine = EngineSettings(max_running=min(in_flight, _MAX_RUNNING), max_waiting=in_flight)
        self._settings = ServeSettings(model=ModelSettings(path=path), engine=engine)
        self._model: LocalModel | None = None

    async def open(self) -> tuple[str, dict[str, Any]]:
        """See ``_RemoteSubject``."""
        return self._settings.model_names[0], dict(_NO_PENALTY)

    def load(self) -> None:
        """Load the model, before the timings of questions begin."""
        from minigpt4_serve.cli.console import Step
        from minigpt4_serve.cli.sources import LocalModel

        with Step("loading the model"):
            self._model = LocalModel(self._settings)

    def ask(self, messages: "Sequence[dict[str, Any]]", **fields: Any) -> "AsyncGenerator[Event]":
        assert self._model is not None
        return self._model.events(messages, fields)

    def describe(self, error: MiniGPT4Error) -> str:
        return error.message

    async def close(self) -> None:
        if self._model is not None:
            self._model.close()


async def _measure(
    name: str,
    data: "DataFolder",
    output: Path,
    subject: _RemoteSubject | _LocalSubject,
    fields: Mapping[str, Any],
    *,
    limit: int | None,
    in_flight: int,
    sheet: bool,
) -> None:
    """Ask what isn't answered yet, and write the report."""
    from minigpt4_serve.evaluation.answer_log import AnswerLog, read_answers, write_run
    from minigpt4_serve.evaluation.questions import fingerprint
    from minigpt4_serve.evaluation.rater_sheet import write_sheet
    from minigpt4_serve.evaluation.report import score_answers, write_report
    from minigpt4_serve.evaluation.runner import ask_all
    from minigpt4_serve.evaluation.tasks import read_questions

    task = TASKS[name]
    questions = read_questions(task, data, limit)
    try:
        with _rewording(subject):
            model, needed = await subject.open()
        options = {**needed, **fields}
        run = {"task": name, "model": model, "questions": fingerprint(questions), "options": options}
        write_run(output, run)
        answered = {key for key, record in read_answers(output).items() if record.error is None}
        missing = [question for question in questions if question.id not in answered]
        typer.echo(f"• {len(questions)} questions, {len(questions) - len(missing)} are answered already", err=True)
        if missing:
            subject.load()
        started = time.perf_counter()
        progress = _Progress(len(missing))
        with AnswerLog(output) as log, _rewording(subject):
            await ask_all(
                missing,
                lambda messages: subject.ask(messages, **options),
                log,
                in_flight=in_flight,
                progress=progress.advance,
            )
        session = {"asked": len(missing), "seconds": time.perf_counter() - started, "in_flight": in_flight}
    finally:
        await subject.close()
    records = read_answers(output)
    if task.scorer is not None:
        report = write_report(output, task, run, score_answers(task, task.scorer(data), questions, records), session)
        for split, figures in {"": report["metrics"], **report["splits"]}.items():
            typer.echo(_figures_line(split, {metric: figures[metric] for metric in task.metrics}))
        typer.echo(f"• {output / 'report.md'}", err=True)
    if sheet or task.scorer is None:
        typer.echo(f"• {write_sheet(output, task.title, run, questions, records)}", err=True)


@contextmanager
def _rewording(subject: _RemoteSubject | _LocalSubject) -> Iterator[None]:
    """Errors of the subject in sentences for the person at the terminal."""
    try:
        yield
    except MiniGPT4Error as error:
        error.reword(subject.describe(error))
        raise


def _figures_line(split: str, figures: Mapping[str, float | None]) -> str:
    shown = "  ".join(f"{name} {'–' if value is None else f'{100 * value:.1f} %'}" for name, value in figures.items())
    return f"{split}: {shown}" if split else shown


class _Progress:
    """Counts answers on standard error: in place on a terminal, ten lines in all elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._failed = 0
        self._started = time.perf_counter()
        self._in_place = sys.stderr.isatty()

    def advance(self, record: "AnswerRecord") -> None:
        """Count one answer, or one failure."""
        self._done += 1
        if record.error is not None:
            self._failed += 1
        finished = self._done == self._total
        shown = finished or self._in_place or self._done % max(1, self._total // _PROGRESS_STEPS) == 0
        if not shown:
            return
        rate = self._done / max(time.perf_counter() - self._started, 1e-6)
        failed = f", {self._failed} failed" if self._failed else ""
        left = f", {(self._total - self._done) / rate:.0f} s left" if not finished else ""
        line = f"• {self._done} of {self._total} answered, {rate:.1f} a second{failed}{left}"
        typer.echo(f"\r{line:<78}" if self._in_place else line, err=True, nl=finished or not self._in_place)


def _read_fields(options: Sequence[str]) -> dict[str, Any]:
    """Fields of requests from ``NAME=VALUE``; values are JSON, or else text.

    Raises:
        InvalidRequest: there is no name or no ``=``.
    """
    fields: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"--option {option} should look like NAME=VALUE.")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields
