"""Writes a model folder atomically."""

import errno
import glob
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.memory import gib
from minigpt4_serve.signal_handlers import signal_handler
from minigpt4_serve.weights.reader import LazyTensor

if sys.platform != "win32":
    import fcntl

__all__ = ["atomic_folder", "check_target", "total_bytes", "write_json", "write_shards"]


def check_target(out: Path) -> None:
    """Check that ``out`` doesn't exist or is an empty folder.

    Raises:
        InvalidRequest: it exists and isn't empty, or is a file.
    """
    try:
        in_use = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise InvalidRequest(f"{out} can't be read; choose another output folder.") from error
    if in_use:
        raise InvalidRequest(f"{out} exists already; choose a new folder or delete it first.")


@contextmanager
def atomic_folder(out: Path, *, needs: int) -> Iterator[Path]:
    """Yield a new folder beside ``out``, renamed to ``out`` at the end and removed on any error, Ctrl-C or SIGTERM.

    After SIGKILL the folder remains; the next run for the same ``out`` removes it.

    Args:
        out: the final path.
        needs: bytes that will be written.

    Raises:
        InvalidRequest: the path can't be written.
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
        with signal_handler(signal.SIGTERM, _exit_after_cleanup), _locked(partial):
            yield partial
            partial.chmod(0o755)  # mkdtemp creates it with mode 700
            partial.rename(out)
    except OSError as error:
        raise _to_write_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_PARTIAL = ".partial"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder; the operating system releases it when the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    if sys.platform == "win32":  # Windows can't lock folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(out: Path) -> None:
    """Remove unfinished folders of killed runs for the same ``out``: those that no process has locked."""
    if sys.platform == "win32":
        return
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*{_PARTIAL}"):
        try:
            with _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # locked by another run, or owned by another user


def _to_write_error(out: Path, error: OSError) -> WeightsError | InvalidRequest:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError(f"The disk of {out} became full. Nothing was kept; make room and run it again.")
    if error.errno == errno.EFBIG:
        return WeightsError(
            f"{out} can't hold files as large as this model's: its file system or your limit (ulimit -f) forbids them. "
            "Nothing was kept; choose another folder."
        )
    return InvalidRequest(f"{out} can't be written ({error.strerror or 'unknown reason'}); choose another folder.")


def _exit_after_cleanup(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def total_bytes(tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> int:
    """Size of all tensors in that dtype, in bytes."""
    return sum(prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize


def write_shards(
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    max_bytes: int,
    on_bytes: Callable[[str, int, int], None],
) -> None:
    """Write safetensors files with transformers' names; only one shard is in memory at a time.

    Args:
        max_bytes: largest size of a shard, unless a single tensor is larger.
        on_bytes: called with (key, bytes written, bytes in total) after every tensor.

    Raises:
        WeightsError: a tensor has values that aren't finite in ``dtype``.
        OSError: a file can't be written.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        length = prod(tensor.shape) * dtype.itemsize
        if shards[-1] and size + length > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += length
    done = 0
    total = total_bytes(tensors, dtype)
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"model{suffix}.safetensors"
        shard: dict[str, torch.Tensor] = {}
        for key in keys:
            # Always a copy: safetensors rejects tensors that share memory, as mapped ones may.
            shard[key] = tensors[key].read().to(dtype, copy=True).contiguous()
            if not shard[key].isfinite().all():
                raise WeightsError(
                    f"{key} holds numbers that are infinite, not a number, or too large for {dtype}: the file is "
                    "damaged, or it needs --dtype bfloat16."
                )
            weight_map[key] = file
            done += shard[key].nbytes
            on_bytes(key, done, total)
        _save(shard, folder / file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file.

    Raises:
        OSError: with the ``errno`` that the library has in its message only.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        number = int(match[1]) if match else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
