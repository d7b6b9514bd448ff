"""``minigpt4-telegram``: the command line. What is wrong with the settings is said before anything heavy is loaded."""

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
        Path | None, typer.Option("--settings", "-s", help="A YAML file such as configs/telegram.yaml.")
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="From which severity on something is logged.", case_sensitive=False)
    ] = LogLevel.INFO,
) -> None:
    """A Telegram bot that answers questions about pictures. TELEGRAM_TOKEN must be in the settings or environment."""
    try:
        read = read_bot_settings(settings)
        if read.telegram.token is None:
            raise InvalidRequest(
                "Set TELEGRAM_TOKEN to your bot's token; @BotFather in Telegram gives you one by /newbot."
            )
        known = (read.telegram.token, read.server.api_key, read.telegram.webhook.secret)
        set_up_logging(log_level, [secret.get_secret_value() for secret in known if secret])
        try:
            from minigpt4_bots.telegram.connection import run
        except ModuleNotFoundError:
            raise InvalidRequest("The bot's library is missing: pip install 'minigpt4-serve[telegram]'.") from None
        run(read, settings, read.telegram.token.get_secret_value())
    except MiniGPT4Error as error:
        print(error.message, file=sys.stderr)
        raise typer.Exit(1) from None
