"""What may be known about people: keyed hashes instead of ids, sealed notes, logs without secrets or contents.

Knows no platform. The key is 32 random bytes in a file beside the database that only its owner may read: without it a
hash can't be turned back by trying all ids.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from minigpt4_serve.errors import InvalidRequest

__all__ = ["HideSecrets", "LogLevel", "Pseudonyms", "set_up_logging"]

_KEY_BYTES = 32
_OTHER_BOT_WRITES_S = 2.0


class Pseudonyms:
    """Ids → keyed hashes, and short texts → sealed bytes that only the holder of the key can open."""

    def __init__(self, key: bytes) -> None:
        assert len(key) >= 16, "a short key can be guessed"
        self._key = key

    @classmethod
    def beside(cls, database: Path) -> "Pseudonyms":
        """With the key in ``<database>.key``, made at the first start. Both bots may start at the same time.

        Raises:
            InvalidRequest: the file can't be made or read, or holds no whole key.
        """
        file = database.with_name(f"{database.name}.key")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _make_key(file)
            key = _read_key(file)
        except OSError as error:
            raise InvalidRequest(
                f"The key file {file} can't be used. Set 'database' to a file in a folder where the bot may write."
            ) from error
        if len(key) < _KEY_BYTES:
            raise InvalidRequest(f"The key file {file} holds no whole key. Delete it: the next start makes a new one.")
        return cls(key)

    def of(self, platform: str, kind: str, identity: str) -> str:
        """The 16 hex digits that stand for an id in logs and storage. ``kind``: ``user``, ``chat`` …"""
        text = "\0".join((platform, kind, identity)).encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:16]

    def seal(self, text: str) -> bytes:
        """Encrypt and sign: HMAC-SHA256 in counter mode over a random nonce, and over the whole as its tag."""
        nonce = secrets.token_bytes(16)
        data = text.encode()
        hidden = bytes(a ^ b for a, b in zip(data, self._stream(nonce, len(data)), strict=True))
        return nonce + self._tag(nonce + hidden) + hidden

    def unseal(self, sealed: bytes) -> str:
        """The sealed text.

        Raises:
            ValueError: sealed with another key, or damaged.
        """
        nonce, tag, hidden = sealed[:16], sealed[16:32], sealed[32:]
        if not hmac.compare_digest(tag, self._tag(nonce + hidden)):
            raise ValueError("sealed with another key, or damaged")
        return bytes(a ^ b for a, b in zip(hidden, self._stream(nonce, len(hidden)), strict=True)).decode()

    def _tag(self, data: bytes) -> bytes:
        return hmac.new(self._key, b"tag\0" + data, hashlib.sha256).digest()[:16]

    def _stream(self, nonce: bytes, length: int) -> bytes:
        blocks = (
            hmac.new(self._key, b"stream\0" + nonce + block.to_bytes(4, "big"), hashlib.sha256).digest()
            for block in range(-(-length // 32))
        )
        return b"".join(blocks)[:length]


def _make_key(file: Path) -> None:
    """Write a new key, unless there is one."""
    try:
        # Whoever makes the file writes the key. Not every volume has links to put a complete file into place.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(secrets.token_bytes(_KEY_BYTES))
    except OSError:
        file.unlink(missing_ok=True)  # a full disk, such as that
        raise


def _read_key(file: Path) -> bytes:
    """The key, waited for if the other bot is just about to write it."""
    until = time.monotonic() + _OTHER_BOT_WRITES_S
    while len(key := file.read_bytes()) < _KEY_BYTES and time.monotonic() < until:
        time.sleep(0.02)
    return key


class HideSecrets(logging.Filter):
    """Takes tokens and keys out of every record: libraries log addresses, and Telegram's addresses hold the token."""

    def __init__(self, secrets_: Iterable[str]) -> None:
        super().__init__()
        words = sorted((re.escape(word) for word in secrets_ if len(word) >= 4), key=len, reverse=True)
        self._pattern = re.compile("|".join([*words, r"\b\d{6,12}:[\w-]{30,}"]))

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: records are cleaned, not dropped."""
        record.msg = self._pattern.sub("***", record.getMessage())
        record.args = ()
        if record.exc_info and record.exc_info[1] is not None:
            # A traceback's texts may quote addresses: rendered here, cleaned, and kept as text.
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = self._pattern.sub("***", text)
            record.exc_info = None
        return True


class LogLevel(StrEnum):
    """From which severity on something is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def set_up_logging(level: LogLevel, secrets_: Iterable[str]) -> None:
    """One handler on stderr that hides secrets; the libraries' own chatter only from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(HideSecrets(secrets_))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "openai",
        "telegram",
        "discord",
        "apscheduler",
        "asyncio",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)
