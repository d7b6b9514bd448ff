"""The token that a local Ray cluster requires of every connection.

It allows running code as the user of the server, so no other user of the machine may read it.
"""

import os
import secrets
from pathlib import Path

from minigpt4_serve.errors import EngineFailed

__all__ = ["protect_token"]


def protect_token() -> None:
    """Make the file that Ray reads its token from readable by this user only; create it if it doesn't exist.

    Ray would create it with the permissions of any file. Nothing is done where the token is in ``RAY_AUTH_TOKEN``.

    Raises:
        EngineFailed: the file that ``RAY_AUTH_TOKEN_PATH`` names doesn't exist, or the file can't be written or its
            permissions can't be changed.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given) if given else Path.home() / ".ray" / "auth_token"
    if given and not file.exists():
        raise EngineFailed(f"RAY_AUTH_TOKEN_PATH names {file}, which doesn't exist: create the file or unset it.")
    try:
        if not given:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(file)
        if hasattr(os, "fchmod"):  # Windows has no such permissions
            descriptor = os.open(file, os.O_RDONLY)
            try:
                if os.fstat(descriptor).st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise EngineFailed(f"Ray's token {file} can't be made private: check who owns the file.") from error


def _create(file: Path) -> None:
    """Write a new token unless there is one; an empty file, left by a start that was killed, counts as none."""
    if file.exists() and file.stat().st_size:
        return
    # The file is complete before it gets its name: another server may be starting at the same time.
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(secrets.token_hex(32))
    try:
        if file.exists():
            partial.replace(file)
        else:
            os.link(partial, file)
    except FileExistsError:
        pass  # another server has just written one
    except OSError:  # a file system without hard links
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
