"""Strict loading of a model folder: every tensor that the model has comes from the files, and nothing is left over.

Names and shapes are compared from the files' headers before a single weight is read, so a wrong folder is refused in
a second, by name. Knows nothing of the engine, Ray or HTTP.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.model.lora import merge_lora
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.quantize import quantize

__all__ = [
    "check_tensors",
    "compare_shapes",
    "load_model",
    "model_files",
    "model_shapes",
    "read_config",
    "resolve_device",
    "resolve_dtype",
    "stored_shapes",
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    settings: ModelSettings, *, attention: str | None = None
) -> tuple[MiniGPT4ForConditionalGeneration, MiniGPT4Processor]:
    """A model folder, ready to answer: (model in eval mode on its device, its processor).

    Args:
        settings: folder, device, dtype and quantization.
        attention: ``eager`` or ``sdpa``; transformers' choice if not given.

    Raises:
        WeightsError: the folder isn't a complete MiniGPT-4 model; names the tensors at fault.
        InvalidRequest: the device or the quantization isn't there on this machine, or its memory is too small.
    """
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    config = read_config(settings.path)
    check_tensors(settings.path, config)
    with _quiet():
        try:
            model = MiniGPT4ForConditionalGeneration.from_pretrained(
                settings.path, config=config, dtype=dtype, attn_implementation=attention, local_files_only=True
            )
            processor = MiniGPT4Processor.from_pretrained(settings.path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise WeightsError(f"{settings.path} can't be loaded; convert it again.") from error
    model = model.eval().requires_grad_(False)
    merge_lora(model.language_model)
    model.config.lora_config = None
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    try:
        if settings.quantization is not None:
            quantize(model, settings.quantization, device)
        return model.to(device), processor
    except torch.OutOfMemoryError as error:
        from minigpt4_serve.weights.memory import footprint, gib  # it counts with this module's shapes

        kind = settings.quantization or str(dtype).removeprefix("torch.")
        smaller = {"int8": "quantization int4, ", "int4": ""}.get(kind, "quantization int8 or int4, ")
        raise InvalidRequest(
            f"The weights take {gib(footprint(config, kind).weights)} as {kind}; {device} had {gib(free)} free. "
            f"Use {smaller}a smaller model or a larger GPU."
        ) from error


def read_config(folder: Path) -> MiniGPT4Config:
    """The configuration of a model folder.

    Raises:
        WeightsError: there is no such folder, or it holds something else.
    """
    path = folder / "config.json"
    if not folder.is_dir() or not path.is_file():
        raise WeightsError(f"{folder} is not a model folder: it has no config.json. `minigpt4 convert` makes one.")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: it holds no JSON object.") from error
    if kind != MiniGPT4Config.model_type:
        raise WeightsError(f"{folder} holds a model of type {kind!r}, not a MiniGPT-4; `minigpt4 convert` makes one.")
    try:
        return MiniGPT4Config.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise WeightsError(f"{path} describes no MiniGPT-4 that this version knows.") from error


def model_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all there.

    Raises:
        WeightsError: none, or a shard that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{index} is damaged.") from error
    else:
        names = ["model.safetensors"]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise WeightsError(f"{folder} is incomplete: {', '.join(absent)} is not there.")
    return [folder / name for name in names]


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor in a folder's safetensors files, from their headers alone.

    Raises:
        WeightsError: a file is missing, cut short or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in model_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or cut short; copy or convert it again.") from error
    return shapes


def model_shapes(config: MiniGPT4Config) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a model of this configuration stores. Takes no memory (meta device)."""
    with torch.device("meta"):
        model = MiniGPT4ForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get_text_config().tie_word_embeddings:
        shapes.pop("language_model.lm_head.weight", None)  # the embedding's own rows: stored once
    return shapes


def check_tensors(folder: Path, config: MiniGPT4Config) -> None:
    """Compare a folder's tensors with what its configuration needs.

    Raises:
        WeightsError: names every tensor that is missing, left over or of another shape, or no model can have that
            configuration.
    """
    try:
        needed = model_shapes(config)
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        path = folder / "config.json"
        raise WeightsError(f"{path} describes no MiniGPT-4 that this version knows.") from error
    compare_shapes(stored_shapes(folder), needed, what=str(folder))


def compare_shapes(found: dict[str, tuple[int, ...]], needed: dict[str, tuple[int, ...]], *, what: str) -> None:
    """Raise a ``WeightsError`` that names every difference between two tables of name → shape, if there is one."""
    missing, unexpected = needed.keys() - found.keys(), found.keys() - needed.keys()
    if missing or unexpected:
        raise WeightsError(
            f"{what} doesn't fit its model: {len(missing)} tensors are missing, {len(unexpected)} are left over.",
            missing=missing,
            unexpected=unexpected,
        )
    wrong = [f"{n} is {list(found[n])}, not {list(shape)}" for n, shape in needed.items() if found[n] != shape]
    if wrong:
        raise WeightsError(f"{what} doesn't fit its model: {'; '.join(wrong[:5])} ({len(wrong)} tensors differ).")


def resolve_device(name: str) -> torch.device:
    """``auto`` → the GPU if there is one.

    Raises:
        InvalidRequest: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest(f"{name!r} is no device; use auto, cpu, cuda or cuda:1.", param="device") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidRequest(f"There is no {name} on this machine; use --device cpu or auto.", param="device")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` → bfloat16 on GPUs; float32 on CPUs, where it is the faster one on most machines and the exact one."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return _DTYPES[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no chatter of transformers: what matters has been checked already."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
