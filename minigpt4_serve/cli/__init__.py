"""The command line, ``minigpt4``: one module for each command, which imports heavy packages only when it runs.

A new command is a module with one function of the command's name, and its name in ``COMMANDS``. Exit codes are those of
``minigpt4_serve.entry_point``.
"""

from importlib import import_module
from typing import Annotated

import typer

from minigpt4_serve import __version__
from minigpt4_serve.entry_point import run_program

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = ("ask", "chat", "serve", "web", "convert", "doctor", "demo", "evaluate", "keys")
"""In the order of the help. A module's attribute of the same name is the command, or a Typer application of several."""

_EXTRAS = {
    "torch": "model",
    "transformers": "model",
    "numpy": "eval",
    "ray": "serve",
    "fastapi": "serve",
    "uvicorn": "serve",
}

app = typer.Typer(
    name="minigpt4",
    help="Ask MiniGPT-4 about pictures, chat about them, or serve it to others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"minigpt4-serve {__version__}")
        raise typer.Exit


for _name in COMMANDS:
    _command = getattr(import_module(f"minigpt4_serve.cli.{_name}"), _name)
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command()(_command)


def main() -> None:
    """The console script ``minigpt4``."""
    run_program("minigpt4", app, _EXTRAS)
