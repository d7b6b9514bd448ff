"""The Discord bot's connection: made, lost, made again, ended in good order."""

import asyncio
import contextlib
import logging
import random
import signal
from pathlib import Path

import aiohttp
import discord
from discord.gateway import DiscordWebSocket
from discord.http import Route
from yarl import URL

from minigpt4_bots.core.answer_service import Answering
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.discord.bot import OVERALL, DiscordBot, rates_of
from minigpt4_serve.errors import AuthenticationFailed, InvalidRequest

__all__ = ["run"]

_log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0
_BAD_TOKEN = 4004
_PORTAL = "https://discord.com/developers/applications"
_TROUBLE = (
    OSError,
    aiohttp.ClientError,
    TimeoutError,
    discord.HTTPException,
    discord.GatewayNotFound,
    discord.ConnectionClosed,
    # The library stumbles over itself if its very first connection fails; a fresh client doesn't mind.
    AttributeError,
)


async def run(settings: BotSettings, file: Path | None, token: str) -> None:
    """Serve until SIGTERM or Ctrl-C. ``file``: where the settings come from, to read the access lists again.

    Raises:
        InvalidRequest: settings that can't work.
        AuthenticationFailed: Discord doesn't know the token.
    """
    _quieten_library()
    if settings.discord.api_base is not None:
        Route.BASE = settings.discord.api_base.rstrip("/")
    if settings.discord.gateway_url is not None:
        DiscordWebSocket.DEFAULT_GATEWAY = URL(settings.discord.gateway_url)
    answering = Answering.build(settings, "discord", file=file, overall=OVERALL, rates_of=rates_of)
    housekeeping = asyncio.create_task(answering.housekeeping())
    serving = asyncio.create_task(_stay_connected(answering, settings, token))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Windows has none: Ctrl-C cancels this very task there.
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        _log.info("Goodbye.")
    finally:
        housekeeping.cancel()


async def _stay_connected(answering: Answering, settings: BotSettings, token: str) -> None:
    """Connections one after another; within each, the library reconnects by itself."""
    read_all = settings.discord.message_content != "off"
    failures = 0
    try:
        while True:
            bot = DiscordBot(answering, settings, read_all=read_all)
            try:
                await bot.start(token)
                return
            except asyncio.CancelledError:
                # While the connection still stands: running answers end with an explanation.
                await answering.close()
                raise
            except discord.LoginFailure:
                raise _bad_token() from None
            except discord.PrivilegedIntentsRequired:
                if settings.discord.message_content == "on":
                    raise InvalidRequest(
                        f"Discord doesn't grant the message content intent: switch it on at {_PORTAL} (Bot → Message "
                        "Content Intent), or set discord.message_content to auto."
                    ) from None
                _log.info("The message content intent isn't granted: the bot reads only what is addressed to it.")
                read_all = False
                continue
            except _TROUBLE as error:
                if isinstance(error, discord.ConnectionClosed) and error.code == _BAD_TOKEN:
                    raise _bad_token() from None
                failures += 1
                pause_s = min(_LONGEST_PAUSE_S, 2.0 ** min(failures, 6)) * random.uniform(0.5, 1.0)  # noqa: S311 — spread, not secret
                _log.warning("Discord can't be reached (%s); trying again in %.0f s.", type(error).__name__, pause_s)
            finally:
                with contextlib.suppress(*_TROUBLE):
                    await bot.close()
            await asyncio.sleep(pause_s)
    finally:
        await answering.close()


def _quieten_library() -> None:
    """No warnings about voice, which this bot doesn't use, and no traceback for each lost connection."""
    discord.VoiceClient.warn_nacl = False
    discord.VoiceClient.warn_dave = False

    def without_traceback(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Attempting a reconnect"):
            record.exc_info = None
        return True  # with the tracebacks of our own mistakes

    logging.getLogger("discord.client").addFilter(without_traceback)


def _bad_token() -> AuthenticationFailed:
    return AuthenticationFailed(
        f"Discord doesn't accept DISCORD_TOKEN: make a new one (Bot → Reset Token on {_PORTAL})."
    )
