"""Strict loading of a model folder: it has exactly the tensors that the model requires.

Keys and shapes are compared before any weight is read, so a wrong folder fails within a second, with the keys at fault.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.memory import gib
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.model.lora import merge_lora
from minigpt4_serve.model_folder import (
    check_model_type,
    read_generation_defaults,
    read_prompt_encoder,
    reject_disagreement,
)
from minigpt4_serve.serving_memory import check_memory
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.config_values import plain_values
from minigpt4_serve.weights.footprint import footprint
from minigpt4_serve.weights.quantize import quantize
from minigpt4_serve.weights.shapes import check_tensors

__all__ = ["DTYPES", "load_model", "read_config", "resolve_device", "resolve_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name → dtype of weights."""


def load_model(
    settings: ModelSettings, *, attention: str | None = None
) -> tuple[MiniGPT4ForConditionalGeneration, MiniGPT4Processor]:
    """Load a model folder: (model in evaluation mode on its device, its processor).

    Args:
        settings: folder, device, dtype and quantization.
        attention: ``eager`` or ``sdpa``; transformers' choice if not given.

    Raises:
        WeightsError: the folder isn't a complete MiniGPT-4 model; has the missing and unexpected keys.
        InvalidRequest: the device or the quantization isn't available, memory is too small, or a file can't be read.
    """
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    config = read_config(settings.path)
    check_tensors(settings.path, config)
    read_prompt_encoder(settings.path)
    read_generation_defaults(settings.path)
    check_memory(settings, on_cpu=device.type == "cpu")
    with _quiet_transformers():
        try:
            model = MiniGPT4ForConditionalGeneration.from_pretrained(
                settings.path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
            )
            processor = MiniGPT4Processor.from_pretrained(settings.path, local_files_only=True)
        except Exception as error:  # transformers raises any kind for values of the wrong type
            raise WeightsError(f"{settings.path} can't be loaded; convert it again.") from error
    _check_processor(processor, config, settings.path)
    model = model.eval().requires_grad_(False)
    merge_lora(model.language_model)
    model.config.lora_config = None
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    try:
        if settings.quantization is not None:
            quantize(model, settings.quantization, device)
        return model.to(device), processor
    except torch.OutOfMemoryError as error:
        kind = settings.quantization or str(dtype).removeprefix("torch.")
        smaller = {"int8": "quantization int4, ", "int4": ""}.get(kind, "quantization int8 or int4, ")
        raise InvalidRequest(
            f"The weights take {gib(footprint(config, kind).weights)} as {kind}; {device} had {gib(free)} free. "
            f"Use {smaller}a smaller model or a larger GPU."
        ) from error


def read_config(folder: Path) -> MiniGPT4Config:
    """The configuration of a model folder.

    Raises:
        WeightsError: there is no such folder, or it contains something else.
    """
    read = check_model_type(folder)
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists():
        # transformers would load the model that it names instead of this folder's.
        raise WeightsError(f"{folder} holds an adapter (adapter_config.json): merge it into the model first.")
    values = plain_values(read, path)
    if values.get("quantization_config") is not None:
        raise WeightsError(
            f"{folder} holds quantized weights. Convert the full ones and choose int8 or int4 when you serve."
        )
    try:
        return MiniGPT4Config.from_dict(values)
    except Exception as error:  # transformers raises any kind for values of the wrong type
        raise WeightsError(f"{path} describes no MiniGPT-4 model that this version supports.") from error


def _check_processor(processor: MiniGPT4Processor, config: MiniGPT4Config, folder: Path) -> None:
    """Check that the processor makes the images and image tokens that the model takes."""
    made_and_taken = {
        "image_size": (processor.image_processor.image_size, config.vision_config.image_size),
        "num_image_tokens": (processor.num_image_tokens, config.num_image_tokens),
        "image_token_id": (processor.image_token_id, config.image_token_id),
        "conversation_format": (processor.conversation_format, config.conversation_format),
    }
    reject_disagreement(folder, made_and_taken)


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or the CPU if there is none.

    Raises:
        InvalidRequest: this machine has no such device.
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
    """The dtype of that name; ``auto`` is bfloat16 on GPUs and float32 on CPUs, where it is usually the faster one."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Disable transformers' progress bars and warnings; ``check_tensors`` has checked the files before."""
    progress_bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bars:
            transformers_logging.enable_progress_bar()
