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
from collections.abc import Iterable
from pathlib import Path

__all__ = ["HideSecrets", "Pseudonyms", "set_up_logging"]


class Pseudonyms:
    """Ids → keyed hashes, and short texts → sealed bytes that only the holder of the key can open."""

    def __init__(self, key: bytes) -> None:
        assert len(key) >= 16, "a short key can be guessed"
        self._key = key

    @classmethod
    def beside(cls, database: Path) -> "Pseudonyms":
        """With the key in ``<database>.key``, made at the first start. Both bots may start at the same time."""
        file = database.with_name(f"{database.name}.key")
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            # Written aside and linked into place: nobody ever reads half a key.
            draft = file.with_name(f"{file.name}.{os.getpid()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(secrets.token_bytes(32))
            try:
                os.link(draft, file)
            except FileExistsError:
                pass  # the other bot was faster; its key counts
            finally:
                draft.unlink()
        return cls(file.read_bytes())

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


def set_up_logging(level: str, secrets_: Iterable[str]) -> None:
    """One handler on stderr that hides secrets; the libraries' own chatter only from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(HideSecrets(secrets_))
    logging.basicConfig(level=level, handlers=[handler], force=True)
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
