"""Reads tensors from checkpoint files lazily, and never runs code that a file contains."""

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minigpt4_serve.errors import InvalidRequest, WeightsError

__all__ = ["LazyTensor", "llm_files", "model_files", "open_tensors", "sha256"]

_CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read or computed on demand.

    Attributes:
        shape: its shape.
        read: returns the tensor; nothing is cached.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """Key → tensor of a ``.pth``, ``.bin`` or ``.safetensors`` file, or of its entry ``model`` if it has one.

    Files are memory-mapped: data is read when a tensor is. Pickles are loaded without running code; a file that
    contains any is rejected before anything of it runs.

    Raises:
        InvalidRequest: there is no such file, or it can't be read.
        WeightsError: truncated, with code in it, or not a checkpoint.
    """
    if not path.is_file():
        raise InvalidRequest(f"There is no file {path}.")
    if not os.access(path, os.R_OK):
        raise InvalidRequest(f"{path} can't be read; check its permissions.")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    content = _load_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise WeightsError(f"{path} contains no tensors: it is not a checkpoint.")
    return {str(key): LazyTensor(tuple(t.shape), lambda t=t: t) for key, t in tensors.items()}  # type: ignore[misc]


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    try:
        file = safe_open(path, framework="pt")
        return {
            key: LazyTensor(tuple(file.get_slice(key).get_shape()), lambda key=key: file.get_tensor(key))  # type: ignore[misc]
            for key in file.keys()  # noqa: SIM118  (not a mapping)
        }
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or damaged; download or copy it again.") from error


def _load_pickle(path: Path) -> object:
    with path.open("rb") as file:
        magic = file.read(4)
    is_zip = magic == b"PK\x03\x04"
    if is_zip and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is cut short ({path.stat().st_size:,} bytes); download or copy it again.")
    if not is_zip and magic[:1] != b"\x80":
        raise WeightsError(f"{path} is not a PyTorch checkpoint.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; real problems raise
            # Files from before torch 1.6 are no zip archives and can't be memory-mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "unsupported" in str(error).lower():  # a global or an opcode that plain tensors never need
            raise WeightsError(
                f"{path} holds Python code, not only tensors. It was rejected and nothing of it ran; "
                "get the file from the model's authors."
            ) from error
        raise WeightsError(f"{path} is not a PyTorch checkpoint.") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is cut short or damaged; download or copy it again.") from error


def model_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        WeightsError: there are none, or a shard of the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = _shards_in_index(index) if index.is_file() else ["model.safetensors"]
    return _existing(folder, names)


def llm_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face LLM folder: safetensors files if there are any, otherwise ``.bin`` shards.

    Raises:
        InvalidRequest: there is no such folder.
        WeightsError: it has no weights, another layout, or a shard is missing.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"There is no folder {folder}; --llm is the LLM's folder in Hugging Face layout.")
    if not (folder / "config.json").is_file():
        if (folder / "params.json").is_file():
            raise WeightsError(
                f"{folder} holds LLaMA as Meta delivers it. Convert it to a Hugging Face folder first, with "
                "transformers' convert_llama_weights_to_hf.py."
            )
        raise WeightsError(f"{folder} is not a Hugging Face folder: it has no config.json.")
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            names = _shards_in_index(index)
        elif (folder / stem).is_file():
            names = [stem]
        else:
            names = _numbered_shards(folder, Path(stem))
        if names:
            return _existing(folder, names)
    raise WeightsError(f"{folder} has no weights: neither model*.safetensors nor pytorch_model*.bin.")


def _existing(folder: Path, names: list[str]) -> list[Path]:
    """Paths of files, all of which must exist."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder} is incomplete: {', '.join(missing)} is missing; download or copy it again.")
    return [folder / name for name in names]


def _shards_in_index(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is damaged; download or copy it again.") from error


def _numbered_shards(folder: Path, stem: Path) -> list[str]:
    """Names ``stem-00001-of-00002.ext`` of the complete set that any of its files belongs to; empty without any."""
    for path in folder.glob(f"{stem.stem}-*-of-*{stem.suffix}"):
        match = re.fullmatch(r".*-of-(\d+)", path.stem)
        if match:
            count = int(match[1])
            return [f"{stem.stem}-{i:05}-of-{count:05}{stem.suffix}" for i in range(1, count + 1)]
    return []


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hexadecimal SHA-256 of a file; ``on_bytes`` is called with the length of every chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()
