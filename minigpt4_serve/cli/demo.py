"""``minigpt4 demo``: the real server with the embedded model, and a short chat with it."""

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt4_serve.cli.console import Answer, print_answer
from minigpt4_serve.cli.server_process import HangUps, StopSignal, running_server, server_url
from minigpt4_serve.settings import TINY_MODEL

__all__ = ["demo"]

_QUESTIONS = ("What is the background?", "How many objects are there?", "What are they?")


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Try the server with the embedded model.

    Starts the real server and asks it about a drawn picture. The embedded model knows ten drawn shapes; of a
    photograph it invents an answer.
    """
    from minigpt4_serve.cli.sources import RemoteModel, user_message
    from minigpt4_serve.settings import ServeSettings

    picture = TINY_MODEL / "example.png"
    settings = ServeSettings(port=port, log_level="warning")
    with running_server(settings) as server, closing(RemoteModel(server_url(settings))) as source:
        typer.echo(f"\nThe picture: {picture}\n")
        messages: list[dict[str, Any]] = []
        for question in _QUESTIONS:
            messages.append(user_message(question, [] if messages else [picture]))
            typer.echo(f"> {question}")
            answer = Answer()
            print_answer(source.answer(messages), answer)
            typer.echo(f"  {answer.timing}\n")
            messages.append({"role": "assistant", "content": answer.text})
        typer.echo(_next_steps(picture, server_url(settings), keep))
        if keep:
            with suppress(StopSignal):
                HangUps(server).wait()


def _next_steps(picture: Path, url: str, keep: bool) -> str:
    command = _command()
    option = f" --server {url}" if keep else ""
    up = f"The server is up at {url}/v1, its page at {url}/ (Ctrl-C stops it).\n" if keep else ""
    page = "" if keep else f"  {command} web    a page in the browser to talk to pictures\n"
    return (
        f"{up}What to try next:\n"
        f'  {command} ask {_short(picture)} "What color is the star?"{option}\n'
        f"  {command} chat {_short(picture)}{option}\n"
        f"{page}"
        f"  {command} serve  then point any OpenAI client at http://127.0.0.1:8000/v1\n"
        f"  {command} --help"
    )


def _command() -> str:
    """The command that runs ``minigpt4`` from this folder, also if its environment isn't activated."""
    script = Path(sys.executable).with_name("minigpt4")
    return _short(script) if script.is_relative_to(Path.cwd()) else "minigpt4"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
