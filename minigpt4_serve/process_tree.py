"""The descendants of a process, and how to kill them. Linux and macOS; on Windows there are none to find."""

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = ["descendants", "kill_descendants", "processes_using"]

_PROC = Path("/proc")
_PS = Path("/bin/ps")  # absolute: PATH doesn't decide what runs
_RAY_PROGRAMS = "/ray/core/src/ray/"


def descendants(pid: int | None = None) -> list[int]:
    """Process ids of all living descendants of a process, parents before their children; none on Windows.

    Args:
        pid: this process if not given.
    """
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found = [os.getpid() if pid is None else pid]
    for member in found:
        found += children.get(member, ())
    return found[1:]


def kill_descendants(keep: Collection[int] = ()) -> None:
    """SIGKILL to every descendant that isn't in ``keep``: parents first, so that none starts another child."""
    for pid in descendants():
        if pid in keep:
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _parents() -> dict[int, int]:
    """Process id → parent's process id, of every visible process of this machine."""
    if not (_PROC / "self" / "stat").is_file():
        if not _PS.exists():  # Windows
            return {}
        # macOS
        listing = subprocess.run([_PS, "-Ao", "pid=,ppid="], capture_output=True, text=True, check=False)  # noqa: S603
        return {int(pid): int(parent) for pid, parent in (line.split() for line in listing.stdout.splitlines())}
    found = {}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it may have ended
            # The name, in parentheses, may contain blanks and parentheses itself.
            found[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return found


def processes_using(folder: Path) -> list[int]:
    """Process ids of this user's Python and Ray processes that have files below ``folder`` open; Linux only."""
    inside = f"{folder.resolve()}{os.sep}"
    python = os.path.realpath(sys.executable)
    found = []
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it may have ended, or be another user's
            program = str((process / "exe").readlink())
            if int(process.name) == os.getpid() or not (program == python or _RAY_PROGRAMS in program):
                continue
            # A file that was removed shows as "PATH (deleted)".
            if any(str(descriptor.readlink()).startswith(inside) for descriptor in (process / "fd").iterdir()):
                found.append(int(process.name))
    return found
