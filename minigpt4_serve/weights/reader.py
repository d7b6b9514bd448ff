"""Reads tensors from checkpoint files lazily, and never runs code that a file contains."""

import hashlib
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minigpt4_serve.downloads import reject_wrong_download
from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.memory import available_memory, gib
from minigpt4_serve.model_folder import read_json_object

__all__ = ["LazyTensor", "llm_files", "model_files", "open_tensors", "sha256"]

_CHUNK_BYTES = 2**24
_MAX_PICKLE_BYTES = 2**21  # without the tensors' data; a 7B model's have about 100 KiB
_MAX_TUPLE_OPCODES = 64  # more than any shape needs
_MAX_SHARDS = 10_000
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of storages


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
    is_safetensors = path.suffix == ".safetensors"
    try:
        reject_wrong_download(path, expected="a safetensors file" if is_safetensors else "a PyTorch checkpoint")
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read.") from error
    if is_safetensors:
        return _open_safetensors(path)
    content = _load_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise WeightsError(f"{path} contains no tensors: it is not a checkpoint.")
    return {str(key): _lazy(path, str(key), tensor) for key, tensor in tensors.items()}


def _lazy(path: Path, key: str, tensor: torch.Tensor) -> LazyTensor:
    """A tensor of a pickle, if the file holds all of its numbers: with stride 0, a few bytes can claim terabytes."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise WeightsError(f"{path}: {key} is sparse or quantized; use the model's plain weights.")

    def read() -> torch.Tensor:
        if tensor.is_meta:
            raise WeightsError(f"{path}: {key} has a shape but no numbers; get the complete file.")
        return tensor

    if not tensor.is_meta and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{path} is damaged: {key} claims more numbers than the file holds.")
    return LazyTensor(tuple(tensor.shape), read)


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    damaged = f"{path} is cut short or damaged; download or copy it again."
    try:
        file = safe_open(path, framework="pt")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, MemoryError) as error:
        raise WeightsError(damaged) from error

    def read(key: str) -> torch.Tensor:
        try:
            return file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise WeightsError(damaged) from error

    return {key: LazyTensor(shape, lambda key=key: read(key)) for key, shape in shapes.items()}  # type: ignore[misc]


def _load_pickle(path: Path) -> object:
    with path.open("rb") as file:
        magic = file.read(9)
    if magic[:1] == b"\x80":
        is_zip = False
        _check_memory(path)
    elif magic[:4] == b"PK\x03\x04":
        is_zip = True
    elif magic[5:] == b"\0\0\0{":
        raise WeightsError(f"{path} looks like a safetensors file: rename it so that it ends in .safetensors.")
    else:
        raise WeightsError(f"{path} is not a PyTorch checkpoint.")
    try:
        _check_pickles(path, is_zip=is_zip)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; real problems raise
            # Files from before torch 1.6 are no zip archives and can't be memory-mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        if "unsupported" in str(error).lower():  # an opcode that plain tensors never need
            raise WeightsError(_holds_code(path)) from error
        raise WeightsError(f"{path} is not a PyTorch checkpoint.") from error
    except Exception as error:  # the unpickler of a damaged file raises any kind, from IndexError to MemoryError
        raise WeightsError(f"{path} is cut short or damaged; download or copy it again.") from error


def _check_memory(path: Path) -> None:
    size = path.stat().st_size
    available = available_memory()
    if available is not None and size > available:
        raise WeightsError(
            f"{path} has the format of PyTorch before 1.6, which is read as a whole: it takes {gib(size)}, "
            f"{gib(available)} are available. Save it again with a newer PyTorch, or use a larger machine."
        )


def _holds_code(path: Path) -> str:
    return (
        f"{path} holds Python code, not only tensors. It was rejected and nothing of it ran; "
        "get the file from the model's authors."
    )


def _holds_more(path: Path) -> str:
    return f"{path} holds more than tensors; get the file from the model's authors."


def _check_pickles(path: Path, *, is_zip: bool) -> None:
    """Check what a checkpoint's pickles call, and their size, before torch reads them.

    torch runs no code either, but calls more: ``bytearray(4000000000)`` in a file of 100 bytes takes 4 GB.

    Raises:
        WeightsError: compressed, too large, or calls anything but what plain tensors need.
        Exception: of any kind, for damaged files.
    """
    if is_zip:
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"{path} is cut short ({path.stat().st_size:,} bytes); download or copy it again.")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            contents = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if not contents:
                raise WeightsError(f"{path} is a zip archive without a checkpoint: unpack it and use the file inside.")
            if len(contents) > 1 or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WeightsError(
                    f"{path} isn't as PyTorch writes checkpoints; get the file from the model's authors."
                )
            if contents[0].file_size > _MAX_PICKLE_BYTES:
                raise WeightsError(_holds_more(path))
            data = archive.read(contents[0])
        pickles = 1
    else:
        with path.open("rb") as file:
            data = file.read(_MAX_PICKLE_BYTES + 1)
        pickles = _LEGACY_PICKLES
    stream = io.BytesIO(data)
    for _ in range(pickles):
        _check_pickle(stream, path)


_DICT = "collections OrderedDict"
_CALLED = {_DICT} | {f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "parameter")}
_CALLED |= {"torch._utils _rebuild_meta_tensor_no_storage", "torch.nn.parameter Parameter", "torch Size"}
_TYPE = re.compile(r"torch ((?!Untyped|Typed)\w+Storage|u?int\d+|b?float\d+\w*|bool|complex\d+|device)")


def _check_pickle(stream: io.BytesIO, path: Path) -> None:
    """Check the opcodes of one pickle: every global is known, and an ordered dict is always made empty.

    What is made from a long list or tuple can be made again and again from the same one, which takes memory out of all
    proportion.
    """
    dicts: set[int] = set()  # memo keys
    marks: list[int] = []  # opcodes since each open mark
    after_dict = False
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        is_memo = name in ("BINPUT", "LONG_BINPUT")
        if after_dict and isinstance(argument, int) and is_memo:
            dicts.add(argument)
            continue
        if after_dict and name != "EMPTY_TUPLE":
            raise WeightsError(_holds_code(path))
        after_dict = False
        if name == "MARK":
            marks.append(0)
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            if name == "TUPLE" and marks[-1] > _MAX_TUPLE_OPCODES:
                raise WeightsError(_holds_more(path))
            marks.pop()
        elif marks:
            marks[-1] += 1
        if name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            if name != "GLOBAL" or (argument not in _CALLED and not _TYPE.fullmatch(str(argument))):
                raise WeightsError(_holds_code(path))
            after_dict = argument == _DICT
        elif name in ("BINGET", "LONG_BINGET"):
            after_dict = argument in dicts
        elif isinstance(argument, int) and is_memo:
            dicts.discard(argument)


def model_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        WeightsError: there are none, or a shard of the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    # transformers prefers the single file as well.
    if index.is_file() and not (folder / "model.safetensors").is_file():
        return _existing(folder, _shards_in_index(index))
    return _existing(folder, ["model.safetensors"])


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
    """File names in an index, all of them in its own folder."""
    weight_map = read_json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise WeightsError(f"{index} is damaged; download or copy it again.")
    return sorted({str(name) for name in names})


def _numbered_shards(folder: Path, stem: Path) -> list[str]:
    """Names ``stem-00001-of-00002.ext`` of the complete set that any of its files belongs to; empty without any."""
    for path in folder.glob(f"{stem.stem}-*-of-*{stem.suffix}"):
        match = re.fullmatch(r".*-of-(\d+)", path.stem)
        if match and (count := int(match[1])) <= _MAX_SHARDS:
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
