"""Output of commands: growing answers on standard output, progress on standard error."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from minigpt4_serve.client import Completed, Event

__all__ = ["Answer", "Step", "end_interrupted_line", "print_answer", "show_bytes"]


@dataclass
class Answer:
    """One answer while it is printed.

    Attributes:
        text: all of it so far.
        ttft_s: seconds until the first text.
        seconds: seconds in all, once it is complete.
        completed: the server's last event; None before.
    """

    text: str = ""
    ttft_s: float = 0.0
    seconds: float = 0.0
    completed: "Completed | None" = None

    @property
    def timing(self) -> str:
        """Times and token counts in one line."""
        end = self.completed
        completion_tokens = (end and end.completion_tokens) or 0
        cached_tokens = (end and end.cached_tokens) or 0
        prompt_tokens = (end and end.prompt_tokens) or 0
        rate = completion_tokens / self.seconds if self.seconds else 0
        return (
            f"first words after {self.ttft_s * 1000:.0f} ms, {completion_tokens} tokens in "
            f"{self.seconds * 1000:.0f} ms ({rate:.0f} tokens/s); {cached_tokens} of {prompt_tokens} "
            "prompt tokens were cached"
        )


def print_answer(events: "Generator[Event]", answer: Answer) -> None:
    """Print an answer and keep it in ``answer``, also if Ctrl-C stops it.

    Raises:
        MiniGPT4Error: as the events' source.
    """
    from minigpt4_serve.client import Completed, TextDelta

    started = time.perf_counter()
    with closing(events):
        for event in events:
            match event:
                case TextDelta(text):
                    answer.ttft_s = answer.ttft_s or time.perf_counter() - started
                    answer.text += text
                    sys.stdout.write(text)
                    sys.stdout.flush()
                case Completed():
                    answer.completed = event
    answer.seconds = time.perf_counter() - started
    sys.stdout.write("\n")
    if answer.completed and answer.completed.dropped_messages:
        dropped = answer.completed.dropped_messages
        typer.echo(f"(The chat is long: the words of its oldest {dropped} messages were left out.)", err=True)


def end_interrupted_line() -> None:
    """Begin a new line on a terminal, which shows ^C in the line of the step. For handlers of signals."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\n")


class Step:
    """Prints the name of a long step, and at its end the seconds it took; nothing more if a signal stops it."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        # Where stderr isn't a terminal, log lines may come between: the result gets a line of its own.
        self._one_line = sys.stderr.isatty()
        typer.echo(f"• {self._what} …", err=True, nl=not self._one_line)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            typer.echo("", err=True, nl=self._one_line)
            return
        result = "failed" if kind else f"{time.perf_counter() - self._started:.1f} s"
        typer.echo(f" {result}" if self._one_line else f"• {self._what}: {result}", err=True)


def show_bytes(item: str, done: int, total: int) -> None:
    """Progress in bytes: one line that counts up on a terminal, one line for each finished item elsewhere."""
    finished = done >= total
    if sys.stderr.isatty():
        typer.echo(f"\r• {done / max(total, 1):4.0%}  {item[-70:]:<70}", err=True, nl=finished)
    elif finished:
        typer.echo(f"• {item}", err=True)
