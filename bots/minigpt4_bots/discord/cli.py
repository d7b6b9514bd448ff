"""``minigpt4-discord``: the command line."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from minigpt4_bots.core.command_line import BotCommandLine
from minigpt4_bots.core.settings import BotSettings

__all__ = ["main"]


def main() -> None:
    """The console script ``minigpt4-discord``."""
    BotCommandLine(
        extra="discord",
        libraries=("discord", "aiohttp", "yarl", "cryptography"),
        description="A Discord bot that answers questions about pictures. The token is `discord.token` in "
        "the settings or DISCORD_TOKEN in the environment.",
        setup_hint="Set DISCORD_TOKEN to your bot's token (Bot → Reset Token on "
        "https://discord.com/developers/applications).",
        token=lambda settings: settings.discord.token,
        secrets=lambda settings: (settings.discord.token, settings.server.api_key),
        import_run=_import_run,
    ).main()


def _import_run() -> Callable[[BotSettings, Path | None, str], None]:
    from minigpt4_bots.discord.connection import run

    return lambda settings, file, token: asyncio.run(run(settings, file, token))
