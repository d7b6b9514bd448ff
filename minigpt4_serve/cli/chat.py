"""``minigpt4 chat``: a conversation about pictures in a terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt4_serve.cli.console import Answer, print_answer
from minigpt4_serve.cli.options import (
    KeyOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    ServerOption,
    TemperatureOption,
    request_options,
)
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.settings import TINY_MODEL

__all__ = ["chat"]


def chat(
    picture: Annotated[list[Path], typer.Argument(metavar="PICTURE", show_default=False, help="Picture files.")],
    server: ServerOption = None,
    api_key: KeyOption = None,
    model: ModelOption = TINY_MODEL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
) -> None:
    """Chat about pictures.

    Ctrl-C stops an answer; an empty line or Ctrl-D ends the chat.
    """
    from minigpt4_serve.cli.sources import open_source, user_message

    image_parts = user_message("", picture)["content"][:-1]  # without the empty text, the last part
    source = open_source(server, api_key, model)
    options = request_options(max_tokens, temperature, seed)
    messages: list[dict[str, Any]] = []
    typer.echo("Ask about the picture. Ctrl-C stops an answer; an empty line ends the chat.", err=True)
    try:
        while question := _read_question():
            content = image_parts if not messages else []
            asked = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
            answer = Answer()
            try:
                print_answer(source.answer([*messages, asked], **options), answer)
            except KeyboardInterrupt:
                typer.echo(" … stopped")
            except MiniGPT4Error as error:
                typer.echo(f"minigpt4: {error.message}", err=True)
                continue
            if answer.text:  # otherwise the chat continues without the question, as after an error
                messages += [asked, {"role": "assistant", "content": answer.text}]
    finally:
        source.close()


def _read_question() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return ""
