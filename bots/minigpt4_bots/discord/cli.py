"""``minigpt4-discord``: the command line. What is wrong with the settings is said before anything heavy is loaded."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from minigpt4_bots.core.privacy import LogLevel, set_up_logging
from minigpt4_bots.core.settings import read_bot_settings
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error

__all__ = ["main"]


def main() -> None:
    """The console script."""
    # Plain tracebacks: the pretty ones may show variables, and one of them is the token.
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(_start)
    app()


def _start(
    settings: Annotated[
        Path | None, typer.Option("--settings", "-s", help="A YAML file such as configs/discord.yaml.")
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="From which severity on something is logged.", case_sensitive=False)
    ] = LogLevel.INFO,
) -> None:
    """A Discord bot that answers questions about pictures. DISCORD_TOKEN must be in the settings or the environment."""
    try:
        read = read_bot_settings(settings)
        if read.discord.token is None:
            raise InvalidRequest(
                "Set DISCORD_TOKEN to your bot's token (Bot → Reset Token on https://discord.com/developers/applications)."
            )
        hidden = [secret.get_secret_value() for secret in (read.discord.token, read.server.api_key) if secret]
        set_up_logging(log_level, hidden)
        try:
            from minigpt4_bots.discord.connection import run
        except ModuleNotFoundError:
            raise InvalidRequest("The bot's library is missing: pip install 'minigpt4-serve[discord]'.") from None
        asyncio.run(run(read, settings, read.discord.token.get_secret_value()))
    except MiniGPT4Error as error:
        print(error.message, file=sys.stderr)
        raise typer.Exit(1) from None
