"""Compares a model's size with the memory of this machine before it is loaded on CPUs. Imports no torch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.memory import available_memory, gib
from minigpt4_serve.model_folder import read_json_object
from minigpt4_serve.settings import ModelSettings

__all__ = ["check_memory", "memory_needed"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CPU_DTYPE = "float32"  # what ``auto`` is on CPUs
_CPU_CACHE_BYTES = 2**30  # of ``engine.kv_cache_bytes`` on CPUs
_GPU_DEVICES = ("nvidia[0-9]*", "dxg", "kfd")  # NVIDIA, Windows' subsystem for Linux, AMD


def check_memory(settings: ModelSettings, *, engines: int = 1, on_cpu: bool | None = None) -> None:
    """Check that the weights and the KV cache of one chat fit into this machine's memory, if it computes on CPUs.

    Quantization doesn't count: the weights are loaded in full before they are quantized.

    Args:
        engines: processes on this machine that load the model.
        on_cpu: whether the model runs on CPUs; judged by the settings and the machine's devices if not given.

    Raises:
        InvalidRequest: it doesn't fit; says what would.
    """
    if not (_is_on_cpu(settings.device) if on_cpu is None else on_cpu):
        return
    available = available_memory()
    dtype = _CPU_DTYPE if settings.dtype == "auto" else settings.dtype
    needed = memory_needed(settings.path, dtype)
    if available is None or needed is None or needed * engines <= available:
        return
    default = ", the default on CPUs" if settings.dtype == "auto" else ""
    several = f", with {engines} engines {gib(needed * engines)}" if engines > 1 else ""
    raise InvalidRequest(
        f"{settings.path} takes {gib(needed)} of memory as {dtype}{default}{several}; "
        f"{gib(available)} are available. " + _advice(settings.path, needed, engines, dtype, available),
        param="model",
    )


def memory_needed(folder: Path, dtype: str) -> int | None:
    """Bytes of a model folder's weights in ``dtype`` and of the KV cache of one chat, at most the default cache.

    None if the folder's files don't tell.
    """
    try:
        config = read_json_object(folder / "config.json")
        stored = _BYTES[config.get("dtype") or config["torch_dtype"]]
        numbers = sum(path.stat().st_size for path in folder.glob("model*.safetensors")) // stored
        text = config["text_config"]
        heads = text["num_attention_heads"]
        head_dim = text.get("head_dim") or text["hidden_size"] // heads
        kv_heads = text.get("num_key_value_heads") or heads
        cached = 2 * text["num_hidden_layers"] * kv_heads * head_dim * text["max_position_embeddings"]
        return int(numbers * _BYTES[dtype] + min(cached * _BYTES[dtype], _CPU_CACHE_BYTES))
    except (WeightsError, OSError, KeyError, TypeError, ArithmeticError, AttributeError):
        return None


def _advice(folder: Path, needed: int, engines: int, dtype: str, available: int) -> str:
    half = memory_needed(folder, "bfloat16") or needed
    if dtype == "float32" and half * engines <= available:
        return (
            f"As bfloat16 it takes {gib(half * engines)} and fits: set dtype: bfloat16 under model: in --config FILE."
        )
    for fewer in range(engines - 1, 0, -1):
        if half * fewer <= available:
            as_half = " and dtype: bfloat16 under model:" if needed * fewer > available else ""
            return f"It fits with engines: {fewer} under scale:{as_half} in --config FILE."
    return (
        f"As bfloat16, the smallest format on CPUs, it takes {gib(half)}: use a machine with more memory, a smaller "
        "model, or a GPU, where int8 and int4 take less."
    )


def _is_on_cpu(device: str) -> bool:
    if device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        return hidden or not any(_gpu_devices())
    return device == "cpu"


def _gpu_devices() -> Iterator[Any]:
    for pattern in _GPU_DEVICES:
        yield from Path("/dev").glob(pattern)
