"""API keys and their limits in a file.

A key is 256 random bits, so its SHA-256 can't be inverted and a slow password hash would gain nothing. Only hashes are
stored. The file may also be written elsewhere and mounted read-only, as a Kubernetes secret for instance.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from minigpt4_serve.errors import InvalidRequest

__all__ = ["ApiKey", "KeyLimits", "KeyRing", "add_key", "read_keys", "revoke_key"]

_log = logging.getLogger(__name__)

_PREFIX = "mg4"
_RELOAD_S = 1.0


class KeyLimits(BaseModel):
    """Limits of one key on the whole service, whatever its number of replicas; None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1)
    concurrent_requests: int | None = Field(default=None, ge=1)
    images_per_day: int | None = Field(default=None, ge=0)


class ApiKey(BaseModel):
    """A key as it is stored.

    Attributes:
        id: part of the key itself, not secret.
        name: of the key's owner, for the operator; unique.
        sha256: of the whole key, in hex.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-z-]{1,32}$")
    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: datetime
    limits: KeyLimits = KeyLimits()


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey] = []


def read_keys(file: Path) -> list[ApiKey]:
    """The keys in ``file``.

    Raises:
        InvalidRequest: no such file, not readable, or not a keys file.
    """
    try:
        return _KeysFile.model_validate(json.loads(file.read_bytes())).keys
    except FileNotFoundError:
        raise InvalidRequest(
            f"There is no keys file {file}; 'minigpt4 keys add NAME --keys-file {file}' makes one."
        ) from None
    except (OSError, ValueError) as error:  # ValidationError is a ValueError; its text could quote the file
        raise InvalidRequest(f"The keys file {file} can't be read; was it changed by hand?") from error


def add_key(file: Path, name: str, limits: KeyLimits) -> str:
    """Make a key and store its hash; the key itself is returned and not stored.

    Raises:
        InvalidRequest: there is a key of that name, the name is empty or too long, or the file can't be written.
    """
    identity = secrets.token_hex(4)
    key = f"{_PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
    try:
        entry = ApiKey(id=identity, name=name, sha256=_sha256(key), created=_now(), limits=limits)
    except ValidationError:
        raise InvalidRequest("A key's name has 1 to 100 characters.", param="name") from None
    with _edit(file) as keys:
        if any(name in (other.name, other.id) for other in keys):
            raise InvalidRequest(f"There is a key '{name}' already; revoke it or choose another name.", param="name")
        keys.append(entry)
    return key


def revoke_key(file: Path, name: str) -> ApiKey:
    """Remove the key of this name or id.

    Raises:
        InvalidRequest: there is none.
    """
    with _edit(file) as keys:
        found = next((key for key in keys if name in (key.name, key.id)), None)
        if found is None:
            raise InvalidRequest(f"There is no key '{name}'; 'minigpt4 keys list' shows them.", param="name")
        keys.remove(found)
    return found


class KeyRing:
    """The valid keys. The file is read again when it has changed, at most once a second.

    If it can't be read, the previous keys stay valid and an error is logged; if it is missing, no key is valid.

    Args:
        file: as ``add_key`` writes it.
        extra: one more key, without limits, from settings or environment.
        clock: seconds; replaced in tests.

    Raises:
        InvalidRequest: the file can't be read, or there is no key at all.
    """

    def __init__(self, file: Path | None, extra: SecretStr | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._extra: ApiKey | None = None
        if extra is not None:
            digest = _sha256(extra.get_secret_value())
            self._extra = ApiKey(id="settings", name="settings", sha256=digest, created=_now())
        self._stamp = self._file_stamp()
        self._keys = {key.id: key for key in read_keys(file)} if file is not None else {}
        self._checked_at = clock()
        if not self._keys and self._extra is None:
            raise InvalidRequest(
                f"The keys file {file} holds no key; make one: minigpt4 keys add NAME --keys-file {file}"
            )

    def find(self, key: str) -> ApiKey | None:
        """The entry that ``key`` belongs to. Digests are compared in constant time."""
        self._refresh()
        digest = _sha256(key)
        parts = key.split("_", 2)
        entry = self._keys.get(parts[1]) if len(parts) == 3 else None
        # Both digests are always compared, so that the time reveals nothing about which keys exist.
        known = hmac.compare_digest(digest, entry.sha256 if entry else "0" * 64)
        special = hmac.compare_digest(digest, self._extra.sha256 if self._extra else "0" * 64)
        return entry if known else self._extra if special else None

    def _refresh(self) -> None:
        now = self._clock()
        if self._file is None or now - self._checked_at < _RELOAD_S:
            return
        self._checked_at = now
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = {key.id: key for key in read_keys(self._file)} if stamp is not None else {}
        except InvalidRequest as error:
            _log.error("%s The previous keys stay valid.", error.message)
            return
        _log.info("keys read again: %d are valid", len(self._keys))

    def _file_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None


@contextmanager
def _edit(file: Path) -> Iterator[list[ApiKey]]:
    """The keys of the file, to be changed in place; written back as a whole, one process at a time."""
    file = file.expanduser().resolve()  # a link stays a link
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent):
            keys = read_keys(file) if file.exists() else []
            yield keys
            _write(file, _KeysFile(keys=keys).model_dump_json(indent=2, exclude_none=True))
    except OSError as error:
        raise InvalidRequest(f"The keys file {file} can't be written.") from error


def _write(file: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # only its owner can read it: 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as temporary:
            temporary.write(text + "\n")
            temporary.flush()
            os.fsync(temporary.fileno())
        with suppress(OSError):  # changed by root, the file keeps its owner
            owner = file.stat()
            os.chown(name, owner.st_uid, owner.st_gid)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock of the folder; none on Windows."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
