"""``minigpt4 ask``: one question about one or several images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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
from minigpt4_serve.settings import TINY_MODEL

__all__ = ["ask"]

_DEFAULT_QUESTION = "What is in this picture?"


def ask(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE|QUESTION", show_default=False, help="Picture files, then the question."),
    ],
    server: ServerOption = None,
    api_key: KeyOption = None,
    model: ModelOption = TINY_MODEL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
) -> None:
    """Ask one question about pictures.

    Example: minigpt4 ask photo.jpg "What is in this picture?"
    """
    from minigpt4_serve.cli.sources import open_source, user_message

    pictures, question = _split_words(words)
    message = user_message(question, pictures)
    source = open_source(server, api_key, model)
    try:
        print_answer(source.answer([message], **request_options(max_tokens, temperature, seed)), Answer())
    finally:
        source.close()


def _split_words(words: Sequence[str]) -> tuple[list[Path], str]:
    """Images first, the question last; a last word that is a file, or has an image's suffix, is an image."""
    from minigpt4_serve.images import IMAGE_SUFFIXES

    last = words[-1]
    if len(words) == 1 or Path(last).is_file() or last.lower().endswith(IMAGE_SUFFIXES):
        return [Path(word) for word in words], _DEFAULT_QUESTION
    return [Path(word) for word in words[:-1]], last.strip() or _DEFAULT_QUESTION
