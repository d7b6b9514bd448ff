"""Runs the Telegram bot by polling or as a webhook, until it is stopped."""

import json
import logging
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from telegram import Update
from telegram.error import InvalidToken
from telegram.ext import Application, ApplicationBuilder, CallbackContext, TypeHandler
from telegram.ext._utils import webhookhandler
from telegram.request import HTTPXRequest
from tornado.web import HTTPError

from minigpt4_bots.core.answer_service import AnswerService
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.telegram.bot import TelegramBot
from minigpt4_bots.telegram.targets import OVERALL, rates_for
from minigpt4_serve.client.connection import make_http_client
from minigpt4_serve.errors import AuthenticationFailed

__all__ = ["run"]


def run(settings: BotSettings, file: Path | None, token: str) -> None:
    """Run until SIGTERM or Ctrl-C. ``file`` is the settings file, from which access lists are reloaded.

    Raises:
        InvalidRequest: the database, or a proxy variable of the environment, can't be used.
        AuthenticationFailed: Telegram doesn't accept the token.
    """
    telegram = settings.telegram
    # Suppresses the library's traceback for a wrong token; the error raised below states what to do.
    logging.getLogger("telegram.ext").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], InvalidToken))
    )
    bots: list[TelegramBot] = []  # the one bot, once `start` has created it

    async def start(application: "Application[Any, Any, Any, Any, Any, Any]") -> None:
        # Created here because its connections belong to the running loop.
        service = AnswerService.create(settings, "telegram", file=file, overall=OVERALL, rates_for=rates_for)
        bots.append(TelegramBot(service, telegram, application.bot))
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
        .request(_make_request(telegram.base_url, connection_pool_size=64, pool_timeout=30, read_timeout=20))
        .get_updates_request(_make_request(telegram.base_url))
        .post_init(start)
        .post_stop(stop)
    )
    application = builder.build()
    application.add_handler(TypeHandler(Update, on_update))
    application.add_error_handler(on_error)
    try:
        _receive_updates(application, settings)
    except InvalidToken:
        raise AuthenticationFailed(
            "Telegram doesn't accept this token. Copy it again from @BotFather (/mybots → API Token) into "
            "TELEGRAM_TOKEN."
        ) from None


def _make_request(url: str, **options: Any) -> HTTPXRequest:
    """The library's HTTP client; a Bot API server on this machine is connected to directly."""
    return make_http_client(lambda **arguments: HTTPXRequest(**options, httpx_kwargs=arguments), url)


class _WebhookHandler(webhookhandler.TelegramHandler):
    """Refuses what is no update with status 400. The library answers 500 or logs the content, with a traceback."""

    async def post(self) -> None:
        """Receive an update."""
        self._validate_post()
        try:
            update = json.loads(self.request.body)
        except (ValueError, RecursionError):
            update = None
        if not isinstance(update, dict) or type(update.get("update_id")) is not int:
            raise HTTPError(400)
        await super().post()


def _receive_updates(application: "Application[Any, Any, Any, Any, Any, Any]", settings: BotSettings) -> None:
    webhook = settings.telegram.webhook
    updates = list(TelegramBot.updates)
    if webhook.url is None:
        application.run_polling(allowed_updates=updates, bootstrap_retries=-1)
        return
    webhookhandler.TelegramHandler = _WebhookHandler  # type: ignore[misc]  # the library has no setting for it
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
