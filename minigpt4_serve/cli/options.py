"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt4_serve.settings import API_KEY_VARIABLE

__all__ = [
    "MODEL_VARIABLE",
    "KeyOption",
    "MaxTokensOption",
    "ModelOption",
    "SeedOption",
    "ServerOption",
    "TemperatureOption",
    "describe_key_refusal",
    "request_options",
]

MODEL_VARIABLE = "MINIGPT4_MODEL"
"""Environment variable with the name of the model to ask, for servers that list several."""

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Ask this server instead of loading a model.", envvar="MINIGPT4_BASE_URL"
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="The server's API key.",
        envvar=API_KEY_VARIABLE,
        show_envvar=True,
        show_default=False,
    ),
]
ModelOption = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="The model's folder.", show_default="the embedded model")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer in tokens.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="NUMBER", min=0, max=2, help="0 gives the likeliest answer; higher values vary more."
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same answer.")]


def request_options(max_tokens: int | None, temperature: float | None, seed: int | None) -> dict[str, Any]:
    """The given options as fields of a chat completion request."""
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


def describe_key_refusal(url: str, has_key: bool, option: str = "--api-key or ") -> str:
    """The sentence for a server that refused a request without a key, or with a wrong one.

    Args:
        option: of the command that takes a key, before the variable's name; empty if it has none.
    """
    if has_key:
        return f"The server at {url} does not accept this key: correct {option}{API_KEY_VARIABLE}."
    return f"The server at {url} requires an API key: give {option}{API_KEY_VARIABLE}."
