"""``minigpt4-telegram``: read the settings, connect by polling or webhook, leave in good order."""

import logging
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from telegram import Update
from telegram.error import InvalidToken
from telegram.ext import Application, ApplicationBuilder, CallbackContext, TypeHandler

from minigpt4_bots.answering import Answering
from minigpt4_bots.privacy import set_up_logging
from minigpt4_bots.settings import BotSettings, read_bot_settings
from minigpt4_bots.telegram_bot import TelegramBot
from minigpt4_bots.telegram_outlets import OVERALL, rates_of
from minigpt4_serve.errors import AuthenticationFailed, InvalidRequest, MiniGPT4Error

__all__ = ["main", "run"]

_log = logging.getLogger(__name__)


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
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """A Telegram bot that answers questions about pictures. TELEGRAM_TOKEN must be in the settings or environment."""
    try:
        read = read_bot_settings(settings)
        known = (read.telegram.token, read.server.api_key, read.telegram.webhook.secret)
        set_up_logging(log_level.upper(), [secret.get_secret_value() for secret in known if secret])
        run(read, settings)
    except MiniGPT4Error as error:
        print(error.message, file=sys.stderr)
        raise typer.Exit(1) from None


def run(settings: BotSettings, file: Path | None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        InvalidRequest: no token, or settings that can't work.
        AuthenticationFailed: Telegram doesn't know the token.
    """
    telegram = settings.telegram
    if telegram.token is None:
        raise InvalidRequest("Set TELEGRAM_TOKEN to your bot's token; @BotFather in Telegram gives you one by /newbot.")
    bots: list[TelegramBot] = []

    async def start(application: "Application[Any, Any, Any, Any, Any, Any]") -> None:
        # Built here: its connections belong to the running loop.
        answering = Answering.build(settings, "telegram", file=file, overall=OVERALL, rates_of=rates_of)
        bots.append(TelegramBot(answering, telegram, application.bot))
        await bots[0].start()

    async def stop(_: object) -> None:
        if bots:
            await bots[0].stop()

    async def on_update(update: Update, _: object) -> None:
        await bots[0].on_update(update)

    async def on_error(_: object, context: CallbackContext[Any, Any, Any, Any]) -> None:
        if isinstance(context.error, Exception):
            bots[0].on_error(context.error)

    builder = (
        ApplicationBuilder()
        .token(telegram.token.get_secret_value())
        .base_url(telegram.base_url)
        .base_file_url(telegram.file_url)
        .connection_pool_size(64)
        .pool_timeout(30)
        .read_timeout(20)
        .post_init(start)
        .post_stop(stop)
    )
    application = builder.build()
    application.add_handler(TypeHandler(Update, on_update))
    application.add_error_handler(on_error)
    try:
        _serve(application, settings)
    except InvalidToken:
        raise AuthenticationFailed(
            "Telegram doesn't know this token. Copy it again from @BotFather (/mybots → API Token) into TELEGRAM_TOKEN."
        ) from None


def _serve(application: "Application[Any, Any, Any, Any, Any, Any]", settings: BotSettings) -> None:
    webhook = settings.telegram.webhook
    updates = list(TelegramBot.updates)
    if webhook.url is None:
        application.run_polling(allowed_updates=updates, bootstrap_retries=-1)
        return
    secret = webhook.secret.get_secret_value() if webhook.secret else secrets.token_urlsafe(32)
    application.run_webhook(
        listen=webhook.listen,
        port=webhook.port,
        url_path=urlsplit(webhook.url).path.lstrip("/"),
        webhook_url=webhook.url,
        secret_token=secret,
        allowed_updates=updates,
        bootstrap_retries=-1,
    )
