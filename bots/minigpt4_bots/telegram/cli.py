"""``minigpt4-telegram``: the command line."""

from collections.abc import Callable
from pathlib import Path

from minigpt4_bots.core.command_line import BotCommandLine
from minigpt4_bots.core.settings import BotSettings

__all__ = ["main"]


def main() -> None:
    """The console script."""
    BotCommandLine(
        extra="telegram",
        description="A Telegram bot that answers questions about pictures. TELEGRAM_TOKEN must be in the settings or "
        "environment.",
        setup_hint="Set TELEGRAM_TOKEN to your bot's token; @BotFather in Telegram gives you one by /newbot.",
        token=lambda settings: settings.telegram.token,
        secrets=lambda settings: (
            settings.telegram.token,
            settings.server.api_key,
            settings.telegram.webhook.secret,
        ),
        import_run=_import_run,
    ).main()


def _import_run() -> Callable[[BotSettings, Path | None, str], None]:
    from minigpt4_bots.telegram.connection import run

    return run
