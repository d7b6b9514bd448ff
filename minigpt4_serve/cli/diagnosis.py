"""The checks of ``minigpt4 doctor``: versions, devices, what fits in memory, the model's files, and a self-test.

Findings are yielded one by one, because some checks take minutes.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from transformers import GenerationConfig, StoppingCriteriaList

from minigpt4_serve.errors import MiniGPT4Error, WeightsError
from minigpt4_serve.images import ImageLimits, decode_image, validate_image
from minigpt4_serve.memory import available_memory, gib, total_memory
from minigpt4_serve.model import Turn
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.model_folder import read_json_object
from minigpt4_serve.serving_memory import check_memory
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.footprint import Footprint, footprint, published_footprints
from minigpt4_serve.weights.load import load_model, read_config, resolve_device, resolve_dtype
from minigpt4_serve.weights.reader import model_files, sha256
from minigpt4_serve.weights.shapes import check_tensors

__all__ = ["SELF_TEST", "Finding", "examine", "memory_table"]

SELF_TEST = "selftest.json"
"""A file in a model folder, ``{"image": file, "question": …, "answer": …}``, with the greedy answer in float32."""

_PACKAGES = ("minigpt4-serve", "torch", "transformers", "safetensors", "sentencepiece", "pillow", "ray", "bitsandbytes")
_WORKSPACE_BYTES = 2**30  # activations, kernels and the allocator's reserve


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    text: str
    state: Literal["ok", "note", "problem"] = "ok"


def examine(settings: ModelSettings) -> Iterator[Finding]:
    """All findings about this machine and a model, cheapest first."""
    yield from versions()
    yield from devices()
    yield from model(settings)


def versions() -> Iterator[Finding]:
    """The versions of Python and of the packages that affect inference."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "note")


def devices() -> Iterator[Finding]:
    """Processors, GPUs and their memory."""
    free = available_memory()
    total = total_memory()
    if free:
        memory = f"{gib(free)} free"
    elif total:
        memory = f"{gib(total)} in all"
    else:
        memory = "memory unknown"
    yield Finding("cpu", f"{_cores()} cores, {memory}")
    if not torch.cuda.is_available():
        yield Finding(
            "gpu", "none that PyTorch can use; the embedded model is meant for CPUs, 7B models are not", "note"
        )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Finding(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {gib(free)} of {gib(total)} free")


def memory_table(available: int | None = None) -> list[list[str]]:
    """The published models in every format: header, then rows of (model, format, weights, one chat, what fits here).

    Args:
        available: bytes; the first GPU's free memory, or the CPU's, if not given.
    """
    if available is None:
        on_gpu = torch.cuda.is_available()
        available = torch.cuda.mem_get_info(0)[0] if on_gpu else available_memory() or total_memory()
    rows = [["model", "format", "weights", "with one full chat", f"in {gib(available)}" if available else "here"]]
    for name, kind, needed in published_footprints():
        rows.append([name, kind, gib(needed.weights), gib(needed.one_chat), _fits(needed, available)])
    return rows


def _fits(needed: Footprint, available: int | None) -> str:
    if not available:
        return "unknown"
    chats = needed.chats_in(available - _WORKSPACE_BYTES)
    if chats >= 1:
        return "1 full chat" if chats < 2 else f"{int(chats)} full chats"
    return "short chats only" if chats > 0.1 else "does not fit"


def model(settings: ModelSettings) -> Iterator[Finding]:
    """Whether the model folder is complete and unchanged, what memory it takes, and the self-test."""
    folder = settings.path
    try:
        config = read_config(folder)
        check_tensors(folder, config)
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
    except MiniGPT4Error as error:
        yield Finding("model", str(error), "problem")
        return
    kind = settings.quantization or str(dtype).removeprefix("torch.")
    needed = footprint(config, kind)
    image_tokens = f"{config.num_image_tokens} image tokens"
    yield Finding("model", f"{folder}: {config.conversation_format}, {image_tokens}, context {needed.context}")
    kv_cache = f"{needed.kv_per_token / 2**10:.0f} KiB of KV cache per token"
    yield Finding("memory", f"{gib(needed.weights)} of weights as {kind}, {kv_cache}")
    yield from _digests(folder)
    try:
        check_memory(settings, on_cpu=device.type == "cpu")
    except MiniGPT4Error as error:
        yield Finding("fits", error.message, "problem")
    else:
        yield self_test(settings)


def _digests(folder: Path) -> Iterator[Finding]:
    """SHA-256 of every weight file, compared with what the conversion recorded."""
    try:
        recorded = read_json_object(folder / "sources.json").get("outputs")
    except WeightsError:
        recorded = None
    if not isinstance(recorded, dict):
        recorded = {}
    for path in model_files(folder):
        digest = sha256(path)
        expected = recorded.get(path.name)
        if expected is None:
            yield Finding(path.name, f"SHA-256 {digest}")
        elif expected == digest:
            yield Finding(path.name, f"SHA-256 {digest}, as converted")
        else:
            text = f"SHA-256 {digest}, but the conversion recorded {expected}: copy or convert it again"
            yield Finding(path.name, text, "problem")


def self_test(settings: ModelSettings) -> Finding:
    """Answer the question stored in the model folder; the answer must equal the stored one."""
    path = settings.path / SELF_TEST
    if not path.is_file():
        return Finding("self-test", f"skipped: {settings.path} has no {SELF_TEST}", "note")
    try:
        stored = read_json_object(path)
        data = (settings.path / stored["image"]).read_bytes()
        image = decode_image(validate_image(data, ImageLimits()).data)
        expected = stored["answer"]
        answer = _ask(settings, image, stored["question"])
    except MiniGPT4Error as error:
        return Finding("self-test", error.message, "problem")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Finding("self-test", f"{path} or its picture is missing or damaged", "problem")
    if answer == expected:
        return Finding("self-test", f"{stored['question']} → {answer}")
    return Finding("self-test", f"answered {answer!r}, not {expected!r}", "problem")


def _ask(settings: ModelSettings, image: Image.Image, question: str) -> str:
    """The greedy answer of ``generate``, the reference implementation for the faster engine."""
    loaded, processor = load_model(settings)
    prompt = processor.encode_chat([Turn("user", question, images=1)]).token_ids
    pixels = processor.image_processor.to_tensor(image)[None]
    stop = StoppingCriteriaList([StopAtText(processor.tokenizer, processor.format.stop)])
    special_tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = GenerationConfig(do_sample=False, max_new_tokens=64, **special_tokens)  # type: ignore[no-untyped-call]
    device = loaded.device
    ids = torch.tensor([prompt], device=device)
    answered = loaded.generate(ids, pixels.to(device), stopping_criteria=stop, generation_config=config)
    return processor.decode_answer(answered[0, len(prompt) :].tolist())


def _cores() -> int:
    """Cores that this process may use; all of them on systems without CPU affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
