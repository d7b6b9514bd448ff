"""Keyed hashes instead of ids, and encryption of the notes that the storage keeps.

Both keys come from 32 random bytes in a file beside the database that only its owner can read. Without the file, a hash
can't be reversed by trying all ids.
"""

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from minigpt4_serve.errors import InvalidRequest

__all__ = ["Pseudonyms"]

_KEY_BYTES = 32
_NONCE_BYTES = 12
_OTHER_BOT_WRITES_S = 2.0


class Pseudonyms:
    """Hashes ids with HMAC-SHA256, and seals short texts with AES-256-GCM under a key derived by HKDF."""

    def __init__(self, key: bytes) -> None:
        assert len(key) >= 16, "a short key can be guessed"
        self._key = key
        self._cipher = AESGCM(HKDF(SHA256(), length=32, salt=None, info=b"minigpt4-bots notes").derive(key))

    @classmethod
    def from_key_file(cls, database: Path) -> "Pseudonyms":
        """Use the key in ``<database>.key``, created at the first start. Both bots may start at the same time.

        Raises:
            InvalidRequest: the file can't be created or read, or holds an incomplete key.
        """
        file = database.with_name(f"{database.name}.key")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _create_key(file)
            key = _read_key(file)
        except OSError as error:
            raise InvalidRequest(
                f"The key file {file} can't be used. Set 'database' to a file in a folder where the bot may write."
            ) from error
        if len(key) < _KEY_BYTES:
            raise InvalidRequest(f"The key file {file} is incomplete. Delete it: the next start creates a new one.")
        return cls(key)

    def pseudonym(self, platform: str, kind: str, identity: str) -> str:
        """16 hex digits that replace an id in logs and storage. ``kind`` is ``user`` or ``chat``."""
        text = "\0".join((platform, kind, identity)).encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:16]

    def seal(self, text: str) -> bytes:
        """Encrypt and authenticate a text: a random 12-byte nonce, then ciphertext and tag."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), None)

    def unseal(self, sealed: bytes) -> str:
        """Decrypt a sealed text.

        Raises:
            ValueError: it was sealed with another key or by another version, or is damaged.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None).decode()
        except (InvalidTag, ValueError) as error:
            raise ValueError("sealed with another key or by another version, or damaged") from error


def _create_key(file: Path) -> None:
    """Write a new key unless the file exists."""
    try:
        # The process that creates the file writes the key. Moving a complete file into place needs links, which some
        # volumes lack.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(secrets.token_bytes(_KEY_BYTES))
    except OSError:
        file.unlink(missing_ok=True)  # for example a full disk
        raise


def _read_key(file: Path) -> bytes:
    """Read the key; if the other bot has just created the file, wait until it is complete."""
    until = time.monotonic() + _OTHER_BOT_WRITES_S
    while len(key := file.read_bytes()) < _KEY_BYTES and time.monotonic() < until:
        time.sleep(0.02)
    return key
