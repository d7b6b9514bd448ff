"""The token that a local Ray cluster requires of every connection.

It allows running code as the user of the server, so no other user of the machine may read it.
"""

import os
import secrets
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from minigpt4_serve.errors import EngineFailed

__all__ = ["provide_token", "withdraw_token"]

_VARIABLE = "RAY_AUTH_TOKEN_PATH"
_FILE = "token"


def provide_token(folder: Path) -> None:
    """Write a new token for this process and those that it starts, which only this user can read.

    Ray would put one into the home folder, which a service may not be able to write to, with the permissions of any
    file. A token that the environment names is used instead, and its file is made private.

    Args:
        folder: of this user only, which exists as long as the cluster.

    Raises:
        EngineFailed: the file that ``RAY_AUTH_TOKEN_PATH`` names doesn't exist or can't be made private, or no file can
            be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    given = os.environ.get(_VARIABLE)
    file = Path(given) if given else folder / _FILE
    if given and not file.exists():
        raise EngineFailed(f"{_VARIABLE} names {file}, which doesn't exist: create the file or unset it.")
    try:
        if given:
            _make_private(file)
        else:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                opened.write(secrets.token_hex(32))
            os.environ[_VARIABLE] = str(file)
            AuthenticationTokenLoader.instance().reset_cache()  # it may hold the token of an earlier server
    except OSError as error:
        raise EngineFailed(f"Ray's token {file} can't be made private: check who owns the file.") from error


def withdraw_token(folder: Path) -> None:
    """Undo ``provide_token`` in this process's environment."""
    if os.environ.get(_VARIABLE) == str(folder / _FILE):
        del os.environ[_VARIABLE]


def _make_private(file: Path) -> None:
    if hasattr(os, "fchmod"):  # Windows has no such permissions
        descriptor = os.open(file, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_mode & 0o077:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
