"""Failures of console scripts: one line on standard error, and one set of exit codes.

0      the command succeeded, or a signal stopped a server or bot that was running
1      it failed: an error of ``errors.py``, a missing extra, or a closed output pipe
2      the command line can't be parsed (Typer's own code)
130    Ctrl-C
128+n  otherwise stopped by signal n, such as 143 by SIGTERM
"""

import os
import sys
from collections.abc import Callable, Mapping

from minigpt4_serve.errors import MiniGPT4Error

__all__ = ["EXIT_BY_SIGNAL", "end_at_once", "run_program"]

EXIT_BY_SIGNAL = 128
"""Shells and service managers add a signal's number to it."""

_end_at_once: list[bool] = []  # has an item after ``end_at_once``
_INTERRUPTED = EXIT_BY_SIGNAL + 2  # SIGINT, on Windows too


def run_program(program: str, run: Callable[[], object], extras: Mapping[str, str]) -> None:
    """Run a console script. Errors of ``errors.py`` and missing extras never show a traceback.

    Args:
        program: its name, in front of each error.
        run: parses the command line and does the work.
        extras: top-level module → the extra of this package that installs it.

    Raises:
        SystemExit: with one of the codes above.
    """
    _end_at_once.clear()
    try:
        _run(program, run, extras)
    except SystemExit as ended:
        if not _end_at_once:
            raise
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:  # the reader of the output is gone
            code = code or 1
        os._exit(code)


def end_at_once() -> None:
    """Let ``run_program`` end this process without freeing its objects, which takes seconds after a model has run.

    Functions registered with ``atexit`` aren't called.
    """
    _end_at_once.append(True)


def _run(program: str, run: Callable[[], object], extras: Mapping[str, str]) -> None:
    try:
        run()
    except MiniGPT4Error as error:
        _fail(f"{program}: {error}")
    except ModuleNotFoundError as error:
        extra = extras.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"{program}: This needs the extra '{extra}': pip install \"minigpt4-serve[{extra}]\"")
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of the output is gone; flushing it again at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _fail(line: str) -> None:
    print(line, file=sys.stderr)
    raise SystemExit(1) from None
