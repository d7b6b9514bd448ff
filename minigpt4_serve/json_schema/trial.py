"""Compiles schemas on trial, in processes with limits of time and memory that can be ended. Imports no llguidance.

A schema of a hundred bytes may take minutes and gigabytes to compile, and a thread can't be ended. What compiles here
costs the engine as little.
"""

import json
import re
import select
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigpt4_serve.errors import EngineFailed

__all__ = ["COMPILER_OPTIONS", "PARSER_LIMITS", "TrialCompiler", "explain_verdict"]

COMPILER_OPTIONS: Any = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,  # a small model might write nothing else until max_tokens
    "whitespace_pattern": None,
    "coerce_one_of": True,
    "lenient": False,
}
"""llguidance's ``JsonCompileOptions``."""

PARSER_LIMITS: Any = {"max_lexer_states": 30_000}
"""llguidance's ``LLParserLimits``: a state takes up to 2 kB, for each answer."""

_CPU_S = 0.5
_MEMORY = 256 * 2**20  # of a process; without a schema it has about 60 MB
_WALL_S = 60.0  # on a machine under load
_MAX_VERDICTS = 512
_MAX_VERDICT_CHARACTERS = 4_000_000  # of the schemas whose verdicts are kept

TOO_COMPLEX = "too complex"
"""The verdict on a schema that takes more than the limits."""


class TrialCompiler:
    """Compiles schemas in one of ``num_processes`` processes, which start when they are needed. Thread-safe."""

    def __init__(self, num_processes: int = 2) -> None:
        self._idle: list[_Process | None] = [None] * num_processes
        self._end = weakref.finalize(self, _end_all, self._idle)
        self._free = threading.Semaphore(num_processes)
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[str, str] = OrderedDict()
        self._characters = 0

    def verdict(self, schema: str) -> str:
        """Empty if ``schema``, JSON text, compiles within the limits; otherwise ``TOO_COMPLEX`` or llguidance's reason.

        Raises:
            EngineFailed: the process can't be started.
        """
        with self._lock:
            known = self._verdicts.get(schema)
            if known is not None:
                self._verdicts.move_to_end(schema)
                return known
        with self._free:
            with self._lock:
                process = self._idle.pop()
            try:
                if process is None or not process.alive:
                    process = _Process()
                verdict = process.ask(schema)
            except OSError as error:
                raise EngineFailed("The JSON schema can't be checked right now; try again in a moment.") from error
            finally:
                with self._lock:
                    self._idle.append(process)
                    if not self._end.alive:
                        _end_all(self._idle)
        self._keep(schema, verdict)
        return verdict

    def close(self) -> None:
        """End the processes: those that are idle now, others after their schema."""
        with self._lock:
            self._end()

    def _keep(self, schema: str, verdict: str) -> None:
        with self._lock:
            if schema not in self._verdicts:
                self._characters += len(schema)
            self._verdicts[schema] = verdict
            while len(self._verdicts) > _MAX_VERDICTS or self._characters > _MAX_VERDICT_CHARACTERS:
                oldest, _ = self._verdicts.popitem(last=False)
                self._characters -= len(oldest)


def explain_verdict(verdict: str, schema: str) -> str:
    """Why a schema is refused, with the keywords of the schema that the verdict names. Quotes nothing of it."""
    if verdict == TOO_COMPLEX:
        return "it is too complex; send a smaller one."
    reason = verdict.partition("\n")[0]
    if "regex" in reason or "lookaround" in reason:
        named = ["pattern"]
    else:
        used = set(re.findall(r'"([A-Za-z$]+)": ', schema))
        named = sorted(used & _KEYWORDS & set(re.findall(r"[A-Za-z$]+", reason)))
        if "min/maxProperties" in reason:
            named = sorted(used & {"minProperties", "maxProperties"})
    if named:
        return f"{' and '.join(map(repr, named))} can't be followed here; leave it out or simplify it."
    return "it is invalid or can't be satisfied."


_KEYWORDS = {
    "$anchor",
    "$id",
    "$ref",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "type",
    "unevaluatedProperties",
}


def _end_all(processes: "list[_Process | None]") -> None:
    for process in filter(None, processes):
        process.end()


class _Process:
    """A ``trial_process``."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("trial_process.py")
        arguments = [str(_CPU_S), str(_MEMORY), json.dumps(COMPILER_OPTIONS), json.dumps(PARSER_LIMITS)]
        self._process = subprocess.Popen(  # noqa: S603  # our own script
            [sys.executable, "-I", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._read_line() is None:
            self.end()
            raise OSError("the process doesn't start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, schema: str) -> str:
        """The verdict on a schema; a process that exceeds a limit is ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(json.loads(schema)).encode() + b"\n")
            self._process.stdin.flush()
        line = self._read_line()
        if line is None:
            self.end()
            return TOO_COMPLEX
        return str(json.loads(line)) if line.strip() else ""

    def _read_line(self) -> bytes | None:
        """The process's next line; None if it ends or computes for too long."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _WALL_S)
        line = self._process.stdout.readline() if readable else b""
        return line if line.endswith(b"\n") else None

    def end(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
