"""``minigpt4-telegram``: the command line."""

from collections.abc import Callable
from pathlib import Path

from minigpt4_bots.core.command_line import BotCommandLine
from minigpt4_bots.core.settings import BotSettings

__all__ = ["main"]


def main() -> None:
    """The console script ``minigpt4-telegram``."""
    BotCommandLine(
        extra="telegram",
        libraries=("telegram", "cryptography"),
        description="A Telegram bot that answers questions about pictures. The token is `telegram.token` in "
        "the settings or TELEGRAM_TOKEN in the environment.",
        setup_hint="Set TELEGRAM_TOKEN to your bot's token; send /newbot to @BotFather in Telegram to create one.",
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
