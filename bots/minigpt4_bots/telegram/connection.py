"""The Telegram bot's connection: by polling or webhook, ended in good order."""

import logging
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from telegram import Update
from telegram.error import InvalidToken
from telegram.ext import Application, ApplicationBuilder, CallbackContext, TypeHandler

from minigpt4_bots.core.answer_service import Answering
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.telegram.bot import TelegramBot
from minigpt4_bots.telegram.targets import OVERALL, rates_of
from minigpt4_serve.errors import AuthenticationFailed

__all__ = ["run"]


def run(settings: BotSettings, file: Path | None, token: str) -> None:
    """Serve until SIGTERM or Ctrl-C. ``file``: where the settings come from, to read the access lists again.

    Raises:
        InvalidRequest: settings that can't work.
        AuthenticationFailed: Telegram doesn't know the token.
    """
    telegram = settings.telegram
    # The library would print a traceback; what to do about a wrong token is said below.
    logging.getLogger("telegram.ext").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], InvalidToken))
    )
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
        .token(token)
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
