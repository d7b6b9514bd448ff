"""Connects the Discord bot, reconnects it, and shuts it down."""

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

from minigpt4_bots.core.answer_service import AnswerService
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.discord.bot import OVERALL, DiscordBot, rates_for
from minigpt4_serve.errors import AuthenticationFailed, InvalidRequest

__all__ = ["run"]

_log = logging.getLogger(__name__)

_MAX_PAUSE_S = 60.0
_BAD_TOKEN_CODE = 4004
_PORTAL = "https://discord.com/developers/applications"
_CONNECTION_ERRORS = (
    OSError,
    aiohttp.ClientError,
    TimeoutError,
    discord.HTTPException,
    discord.GatewayNotFound,
    discord.ConnectionClosed,
    # discord.py raises it if its first connection fails; a new client recovers.
    AttributeError,
)


async def run(settings: BotSettings, file: Path | None, token: str) -> None:
    """Run until SIGTERM or Ctrl-C. ``file`` is the settings file, from which access lists are reloaded.

    Raises:
        InvalidRequest: the database can't be used, or Discord doesn't grant a required intent.
        AuthenticationFailed: Discord doesn't accept the token.
    """
    _quiet_library()
    if settings.discord.api_base is not None:
        Route.BASE = settings.discord.api_base.rstrip("/")
    if settings.discord.gateway_url is not None:
        DiscordWebSocket.DEFAULT_GATEWAY = URL(settings.discord.gateway_url)
    service = AnswerService.create(settings, "discord", file=file, overall=OVERALL, rates_for=rates_for)
    housekeeping = asyncio.create_task(service.run_housekeeping())
    serving = asyncio.create_task(_stay_connected(service, settings, token))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Windows doesn't support it; there Ctrl-C cancels this task.
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        _log.info("Stopped.")
    finally:
        housekeeping.cancel()


async def _stay_connected(service: AnswerService, settings: BotSettings, token: str) -> None:
    """Open one connection after another; the library reconnects within each."""
    read_all = settings.discord.message_content != "off"
    failures = 0
    try:
        while True:
            bot = DiscordBot(service, settings, read_all=read_all)
            try:
                await bot.start(token)
                return
            except asyncio.CancelledError:
                # Running answers end with an explanation while the connection is still open.
                await service.close()
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
            except _CONNECTION_ERRORS as error:
                if isinstance(error, discord.ConnectionClosed) and error.code == _BAD_TOKEN_CODE:
                    raise _bad_token() from None
                failures += 1
                pause_s = min(_MAX_PAUSE_S, 2.0 ** min(failures, 6)) * random.uniform(0.5, 1.0)  # noqa: S311 — spread, not secret
                _log.warning("Discord can't be reached (%s); trying again in %.0f s.", type(error).__name__, pause_s)
            finally:
                with contextlib.suppress(*_CONNECTION_ERRORS):
                    await bot.close()
            await asyncio.sleep(pause_s)
    finally:
        await service.close()


def _quiet_library() -> None:
    """Suppress warnings about voice, which this bot doesn't use, and tracebacks of lost connections."""
    discord.VoiceClient.warn_nacl = False
    discord.VoiceClient.warn_dave = False

    def without_traceback(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Attempting a reconnect"):
            record.exc_info = None
        return True  # other tracebacks stay

    logging.getLogger("discord.client").addFilter(without_traceback)


def _bad_token() -> AuthenticationFailed:
    return AuthenticationFailed(
        f"Discord doesn't accept DISCORD_TOKEN: make a new one (Bot → Reset Token on {_PORTAL})."
    )
