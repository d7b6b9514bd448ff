"""Writing a model folder: whole or not at all. Knows safetensors and file systems, not models."""

import errno
import glob
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.weights.footprint import gib
from minigpt4_serve.weights.reader import LazyTensor

if sys.platform != "win32":
    import fcntl

__all__ = ["atomic_folder", "check_target", "total_bytes", "write_json", "write_shards"]


def check_target(out: Path) -> None:
    """Refuse a place that is taken, before hours of work are spent.

    Raises:
        InvalidRequest: the folder exists and isn't empty, or is a file.
    """
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise InvalidRequest(f"{out} can't be read; choose another output folder.") from error
    if taken:
        raise InvalidRequest(f"{out} exists already; choose a new folder or delete it first.")


@contextmanager
def atomic_folder(out: Path, *, needs: int) -> Iterator[Path]:
    """A new folder beside ``out`` to fill; renamed to ``out`` at the end, removed on any error, Ctrl-C or SIGTERM.

    Nothing can be removed when the process is killed outright; the next run for the same ``out`` does it then.

    Args:
        out: the folder that shall appear.
        needs: bytes that will be written.

    Raises:
        InvalidRequest: the place can't be written.
        WeightsError: the disk is too small, or became full.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(out)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_PARTIAL, dir=out.parent))
    except OSError as error:
        raise InvalidRequest(f"{out.parent} can't be written; choose another output folder.") from error
    try:
        free = shutil.disk_usage(partial).free
        if free < needs:
            raise WeightsError(
                f"The model takes {gib(needs)}, but {out.parent} has only {gib(free)} free: make room or choose "
                "another disk."
            )
        with _terminated_like_interrupted(), _locked(partial):
            yield partial
            partial.chmod(0o755)  # mkdtemp's folders are private
            partial.rename(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_PARTIAL = ".partial"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system drops it with the process, however that ends.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    if sys.platform == "win32":  # folders can't be locked there
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(out: Path) -> None:
    """Remove what killed runs for the same folder have left: unfinished folders that no process holds."""
    if sys.platform == "win32":
        return
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*{_PARTIAL}"):
        try:
            with _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # another run is filling it, or it isn't ours


def _unwritable(out: Path, error: OSError) -> WeightsError | InvalidRequest:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError(f"The disk of {out} became full. Nothing was kept; make room and run it again.")
    if error.errno == errno.EFBIG:
        return WeightsError(
            f"{out} can't hold files as large as this model's: its file system or a limit of yours (ulimit -f) forbids "
            "them. Nothing was kept; choose another place."
        )
    return InvalidRequest(f"{out} can't be written ({error.strerror or 'unknown reason'}); choose another folder.")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that half-written files go away. Only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def total_bytes(tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> int:
    """Size of all tensors in that dtype."""
    return sum(prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize


def write_shards(
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    max_bytes: int,
    on_bytes: Callable[[str, int, int], None],
) -> None:
    """Write tensors as safetensors in transformers' naming; only one shard is in memory at a time.

    Args:
        on_bytes: hears (tensor, bytes done, bytes in all) after every tensor.

    Raises:
        WeightsError: a tensor holds numbers that aren't finite, or don't fit the dtype.
        OSError: the disk refuses.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        length = prod(tensor.shape) * dtype.itemsize
        if shards[-1] and size + length > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += length
    done, total = 0, total_bytes(tensors, dtype)
    where: dict[str, str] = {}
    for number, members in enumerate(shards, start=1):
        one = len(shards) == 1
        file = "model.safetensors" if one else f"model-{number:05}-of-{len(shards):05}.safetensors"
        held: dict[str, torch.Tensor] = {}
        for name in members:
            # A copy even where nothing changes: what the source maps must not be shared between two names.
            held[name] = tensors[name].read().to(dtype, copy=True).contiguous()
            if not held[name].isfinite().all():
                raise WeightsError(
                    f"{name} holds numbers that are infinite, not a number, or too large for {dtype}: the file is "
                    "damaged, or it needs --dtype bfloat16."
                )
            where[name] = file
            done += held[name].nbytes
            on_bytes(name, done, total)
        _save(held, folder / file)
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """One safetensors file.

    Raises:
        OSError: with the system's number, which the library hides in its message.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable UTF-8 JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
