"""Memory of this machine: what this process and those that it starts may still use. Imports no torch."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import resource

__all__ = ["available_memory", "gib", "return_free_memory", "total_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be used without swapping; None if unknown, as on all systems but Linux.

    The least of what the system has available, what the limits of the process's control groups (containers, Slurm,
    systemd) leave, and its own limits (``ulimit``).
    """
    limits = [*_system_memory(), *_left_in_cgroups(), *_process_limits()]
    return max(min(limits), 0) if limits else None


def total_memory() -> int | None:
    """Bytes of memory in all; None if unknown."""
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        size = os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems lack the names
        return None
    return pages * size if pages > 0 and size > 0 else None


def gib(count: int) -> str:
    """A number of bytes as text, in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def return_free_memory() -> None:
    """Give memory that was freed back to the system; no effect where the C library isn't glibc.

    glibc keeps what a thread freed for the next allocation of the same thread: after a large image hundreds of
    megabytes in each.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _system_memory() -> Iterator[int]:
    try:
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable"):
            yield int(line.split()[1]) * 1024


def _left_in_cgroups() -> Iterator[int]:
    """What each limit of the process's control group and of those above it leaves.

    Files that the kernel can drop (``inactive_file``) count as free, as in ``MemAvailable``. Within a container the
    group's path is often that of the host; then the files of the mount's root are the container's.
    """
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            root = _CGROUPS
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = _CGROUPS / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            left = _left_in_cgroup(folder, *names)
            if left is not None:
                yield left
            if folder == root:
                break


def _left_in_cgroup(folder: Path, limit: str, usage: str, droppable: str) -> int | None:
    try:
        text = (folder / limit).read_text(encoding="utf-8").strip()
        if text == "max":
            return None
        used = int((folder / usage).read_text(encoding="utf-8"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # no such group or controller here
        return None
    return int(text) - used + int(statistics.get(droppable, 0))


def _process_limits() -> Iterator[int]:
    if sys.platform == "win32":
        return
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield soft
