"""The folder of a local server: its sockets, and all that Ray writes. No other user of the machine may enter it.

Ray itself would use ``ray`` in the temporary folder, writable by everybody, and leave it there.
"""

import errno
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.process_tree import processes_using

if sys.platform != "win32":
    import fcntl

__all__ = ["PrivateFolder", "is_full"]

_PREFIX = "minigpt4-"
_LOCK = "lock"
_LINK = "f"
_MAX_SOCKET_PATH = 103  # bytes that every Unix takes, without the final zero
_LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1"
_FULL_BYTES = 2**20
_END_TIMEOUT_S = 5.0


class PrivateFolder:
    """A new folder of mode 700 in ``RAY_TMPDIR`` or the temporary folder. While its owner runs, it is locked.

    What servers of this user left there that were killed is removed first, their remaining processes included.

    Attributes:
        path: short enough for Unix sockets in it, whatever the length of the temporary folder's.

    Raises:
        EngineFailed: no folder can be made, or its disk is full.
    """

    def __init__(self) -> None:
        base = _base()
        try:
            base.mkdir(parents=True, exist_ok=True)
            for parent in dict.fromkeys((base, *_short_bases())):
                _remove_leftovers(parent)
            self._locks: list[int] = []
            self._folders = [self._make(base)]
            self.path = self._folders[0]
            too_long = len(os.fsencode(self.path)) + len(_LONGEST_SOCKET) > _MAX_SOCKET_PATH
            if too_long and sys.platform != "win32":
                self._folders.append(self._make(_short_bases()[0]))
                self.path = self._folders[1] / _LINK
                self.path.symlink_to(self._folders[0], target_is_directory=True)
        except OSError as error:
            raise EngineFailed(_explain(error, base)) from error
        if is_full(self.path):
            self.close()
            raise EngineFailed(f"The disk of {base} is full: free space there, or set TMPDIR to another folder.")

    def _make(self, base: Path) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base.absolute()))  # mode 700
        if sys.platform != "win32":
            # Locked before it has its name: a folder with a lock that is free belongs to no running server.
            lock = os.open(folder / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with suppress(OSError):  # a network's file system without locks: nothing is removed there
                fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            self._locks.append(lock)
        return folder

    def end_processes(self) -> None:
        """Kill all other processes of this server, found by the files that they have open here."""
        _end_processes(self._folders[0])

    def close(self, *, keep: bool = False) -> None:
        """Remove the folder; with ``keep`` the next server does, so that its logs can be read. Safe to call twice."""
        if not keep:
            for folder in self._folders:
                _remove(folder)
        for lock in self._locks:
            os.close(lock)
        self._locks = []


def is_full(folder: str | Path) -> bool:
    """Whether less than a mebibyte can be written there: no process of Ray could start."""
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False


def _base() -> Path:
    """Where the folder is made."""
    given = os.environ.get("RAY_TMPDIR")
    try:
        return Path(given).expanduser() if given else Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise EngineFailed("No temporary folder can be written to: set TMPDIR to a folder with free space.") from error


def _short_bases() -> list[Path]:
    """Folders with short paths that this user can write to."""
    return [path for path in map(Path, ("/tmp", "/var/tmp", "/dev/shm")) if os.access(path, os.W_OK)] or [Path("/tmp")]  # noqa: S108


def _explain(error: OSError, base: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The temporary folder {base} is full: free space there, or set TMPDIR to another folder."
    return f"No folder can be made in the temporary folder {base}: set TMPDIR to a folder that you can write to."


def _remove_leftovers(base: Path) -> None:
    """Remove folders of servers that no longer run; their processes are killed."""
    if sys.platform == "win32":
        return
    for folder in _own_folders(base):
        with suppress(OSError):  # such as no lock: another server is just making it
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_processes(folder)
                _remove(folder)
            finally:
                os.close(lock)


def _own_folders(base: Path) -> Iterator[Path]:
    with suppress(OSError):
        for folder in base.glob(f"{_PREFIX}*"):
            status = folder.lstat()
            if folder.is_dir() and not folder.is_symlink() and status.st_uid == os.geteuid():
                yield folder


def _end_processes(folder: Path) -> None:
    """Kill the processes that have files open in ``folder``, and wait until they have ended."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (left := processes_using(folder)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: while anything else is left, the next server tries again."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink(missing_ok=True)
        if [entry.name for entry in folder.iterdir()] in ([], [_LOCK]):
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
