"""Frozen settings of the bots, from a YAML file and the environment.

Environment variables override the file. Unknown keys are errors. Secrets are ``SecretStr`` and never printed.
``access`` and ``limits`` are reloaded when the file changes; everything else requires a restart.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings_file import read_settings_file, validate_settings

__all__ = [
    "AccessSettings",
    "AnswerSettings",
    "BotSettings",
    "DiscordSettings",
    "ImageSettings",
    "LimitSettings",
    "ServerSettings",
    "TelegramSettings",
    "WebhookSettings",
    "read_bot_settings",
]

ENVIRONMENT = {
    "MINIGPT4_BASE_URL": ("server", "base_url"),
    "MINIGPT4_API_KEY": ("server", "api_key"),
    "MINIGPT4_MODEL": ("server", "model"),
    "MINIGPT4_BOTS_DATABASE": ("database",),
    "MINIGPT4_BOTS_LANGUAGE": ("language",),
    "TELEGRAM_TOKEN": ("telegram", "token"),
    "TELEGRAM_BASE_URL": ("telegram", "base_url"),
    "TELEGRAM_BASE_FILE_URL": ("telegram", "base_file_url"),
    "TELEGRAM_WEBHOOK_URL": ("telegram", "webhook", "url"),
    "TELEGRAM_WEBHOOK_SECRET": ("telegram", "webhook", "secret"),
    "TELEGRAM_WEBHOOK_LISTEN": ("telegram", "webhook", "listen"),
    "TELEGRAM_WEBHOOK_PORT": ("telegram", "webhook", "port"),
    "DISCORD_TOKEN": ("discord", "token"),
    "DISCORD_API_BASE": ("discord", "api_base"),
    "DISCORD_GATEWAY_URL": ("discord", "gateway_url"),
}
"""Environment variable → path of keys in the file. Empty variables count as not set."""

_Ids = Annotated[
    frozenset[str], BeforeValidator(lambda ids: {str(one) for one in ids} if isinstance(ids, list) else ids)
]
"""Platform ids as strings; YAML parses them as numbers."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(_Settings):
    """The vision server: any server with OpenAI's chat completions API."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """The same as for OpenAI's clients; ``/v1`` is added if there is no path."""
    api_key: SecretStr | None = None
    model: str | None = None
    """None for the only one that the server lists."""
    timeout_s: float = Field(default=120, gt=0)
    """Longest time without data from the server within one answer, in seconds."""
    patience_s: float = Field(default=60, ge=0)
    """How long to retry while the server's queue is full, in seconds."""

    @field_validator("base_url")
    @classmethod
    def _normalize_base_url(cls, value: str) -> str:
        from minigpt4_serve.client.address import server_address

        try:
            return server_address(value)
        except InvalidRequest as error:
            raise ValueError("must be an address such as http://127.0.0.1:8000/v1") from error


class AnswerSettings(_Settings):
    """Prompts and sampling parameters."""

    question: str | None = None
    """The question for images without text; None for the default of the requester's language."""
    system_prompt: str | None = None
    max_tokens: int = Field(default=512, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """None for the server's default."""
    regenerate_temperature: float = Field(default=1.0, ge=0, le=2)
    """The temperature for the regenerate button, which should give a different answer."""
    max_turns: int = Field(default=20, ge=1)
    """Maximum number of earlier messages whose text is sent, newest first; ``max_count`` limits images."""


class ImageSettings(_Settings):
    """Limits of images, which are kept in memory only."""

    max_count: int = Field(default=4, ge=1)
    """Images per request; the server's limit also applies."""
    max_bytes: int = Field(default=10 * 2**20, ge=1)
    """Largest image in bytes; the server's limit also applies."""
    lifetime_s: float = Field(default=3600, gt=0)
    """How long a conversation and its images are kept after its last question, in seconds."""
    memory_bytes: int = Field(default=256 * 2**20, ge=1)
    """Memory for all images together; the least recently used conversations are deleted first."""


class IdLists(_Settings):
    """Telegram or Discord ids."""

    users: _Ids = frozenset()
    roles: _Ids = frozenset()
    chats: _Ids = frozenset()
    """Telegram chats, Discord servers."""
    channels: _Ids = frozenset()
    """Discord channels and threads, Telegram topics as ``chat/topic``."""


class AccessSettings(_Settings):
    """Who may ask. Deny overrides allow; an empty allow list allows everyone."""

    allow: IdLists = IdLists()
    deny: IdLists = IdLists()
    admins: _Ids = frozenset()
    """Users that lists and limits don't apply to."""
    private_chats: bool = True


class LimitSettings(_Settings):
    """Questions per minute and per day (UTC); None for no limit."""

    user_per_minute: int | None = Field(default=6, ge=0)
    user_per_day: int | None = Field(default=200, ge=0)
    chat_per_minute: int | None = Field(default=20, ge=0)
    chat_per_day: int | None = Field(default=None, ge=0)


class WebhookSettings(_Settings):
    """How Telegram delivers updates by webhook, instead of polling."""

    url: str | None = None
    """The public https URL; None for polling."""
    secret: SecretStr | None = None
    """Sent by Telegram with each update; generated at each start if None."""
    listen: str = "127.0.0.1"
    port: int = Field(default=8443, ge=1, le=65535)

    @field_validator("secret")
    @classmethod
    def _allowed_characters(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,256}", value.get_secret_value()):
            raise ValueError("must be 1 to 256 letters, digits, _ or -")
        return value


class TelegramSettings(_Settings):
    """Settings of ``minigpt4-telegram`` only."""

    token: SecretStr | None = None
    base_url: str = "https://api.telegram.org/bot"
    """For a local Bot API server: ``http://127.0.0.1:8081/bot``."""
    base_file_url: str | None = None
    """None for ``base_url`` with ``/file/bot`` instead of ``/bot``."""
    drafts: bool = True
    """Stream answers in private chats as drafts, if the Bot API server supports them; otherwise by edits."""
    album_wait_s: float = Field(default=0.7, ge=0)
    """How long to wait for the next image of an album, in seconds."""
    webhook: WebhookSettings = WebhookSettings()

    @field_validator("base_url")
    @classmethod
    def _ends_in_bot(cls, value: str) -> str:
        value = value.rstrip("/")
        return value if value.endswith("/bot") else f"{value}/bot"

    @field_validator("base_file_url")
    @classmethod
    def _ends_in_file_bot(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = value.rstrip("/")
        return value if value.endswith("/file/bot") else f"{value.removesuffix('/file')}/file/bot"

    @property
    def file_url(self) -> str:
        """The base URL of downloads, ending in ``/file/bot``."""
        return self.base_file_url or f"{self.base_url.removesuffix('/bot')}/file/bot"


class DiscordSettings(_Settings):
    """Settings of ``minigpt4-discord`` only."""

    token: SecretStr | None = None
    api_base: str | None = None
    """A REST URL instead of Discord's own, including the version, for tests and proxies."""
    gateway_url: str | None = None
    """A gateway URL instead of Discord's own, such as ``ws://127.0.0.1:8082``."""
    message_content: Literal["auto", "on", "off"] = "auto"
    """Whether to use the privileged message content intent; ``auto`` uses it if the developer portal grants it."""


class BotSettings(_Settings):
    """All settings, with the keys of the file."""

    server: ServerSettings = ServerSettings()
    answers: AnswerSettings = AnswerSettings()
    pictures: ImageSettings = ImageSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    database: Path = Path("minigpt4-bots.sqlite3")
    """Counts of questions, and records of unfinished answers; no message contents. Both bots may share it."""
    language: str = "auto"
    """``auto`` for each person's own language if the bot speaks it, otherwise English; or ``en``, ``zh``."""
    telegram: TelegramSettings = TelegramSettings()
    discord: DiscordSettings = DiscordSettings()

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str) -> str:
        from minigpt4_bots.core.texts import languages

        if value != "auto" and value not in languages():
            raise ValueError(f"must be auto or one of {', '.join(languages())}")
        return value


def read_bot_settings(file: Path | None, environment: Mapping[str, str] | None = None) -> BotSettings:
    """Read the settings of a file, overridden by the environment (default: ``os.environ``).

    Raises:
        InvalidRequest: no such file, not YAML, an unknown key or an invalid value. It names the key, never the value.
    """
    values = read_settings_file(file, example="language: en") if file is not None else {}
    for variable, path in ENVIRONMENT.items():
        if value := (os.environ if environment is None else environment).get(variable, "").strip():
            _put(values, path, value)
    return validate_settings(BotSettings, values, file)


def _put(values: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    for step in path[:-1]:
        inner = values.setdefault(step, {})
        if not isinstance(inner, dict):
            return  # validation reports the file's invalid value
        values = inner
    values[path[-1]] = value
