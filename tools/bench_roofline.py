"""The device at its best, and what fraction of that the engine reaches: batches, pictures, the first token."""

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from bench_asks import DECODED, PRESETS, asks
from bench_sides import Side, by_engine, note

from minigpt4_serve.engine import Engine
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from minigpt4_serve.pictures import decode_picture

__all__ = ["Machine", "device_figures", "measure_machine"]


@dataclass(frozen=True)
class Machine:
    """The device at its best, measured here: bytes per second of a copy, operations per second of a product."""

    bandwidth: float
    flops: float


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """A large copy (read and write counted) and a large matrix product, the best of several."""
    large = device.type == "cuda"
    source = torch.zeros((2**32 if large else 2**27) // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    left = torch.randn(side, side, device=device).to(dtype)

    def best(run: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(7):
            if large:
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if large:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    return Machine(copied, 2 * side**3 / best(lambda: left @ left))


def roofline(model: MiniGPT4ForConditionalGeneration, machine: Machine) -> dict[str, Callable[..., float]]:
    """Seconds that each task takes at least: the larger of its bytes over bandwidth and its operations over peak.

    A step reads all of the LLM's weights once, and the keys and values of each sequence; a token costs two operations
    per weight (Williams, Waterman, Patterson 2009; Kaplan et al. 2020 for the count of operations).
    """
    text = model.config.get_text_config()
    llm = sum(p.numel() for p in model.language_model.parameters()) - text.vocab_size * text.hidden_size
    seeing = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.language_model.parameters())
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    size = model.dtype.itemsize
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    kv = 2 * text.num_hidden_layers * heads * size

    def longest(read: float, operations: float) -> float:
        return max(read / machine.bandwidth, operations / machine.flops)

    attention = 4 * vision.num_hidden_layers * vision.hidden_size * patches**2
    return {
        "decode_s": lambda batch, context: longest(llm * size + batch * context * kv, 2 * llm * batch),
        "prefill_s": lambda tokens: longest(llm * size, 2 * llm * tokens),
        "images_s": lambda count: longest(seeing * size, count * (2 * seeing * patches + attention)),
    }


def device_figures(
    model: MiniGPT4ForConditionalGeneration, engine: Engine, machine: Machine, batches: Iterable[int]
) -> dict[str, dict[str, float]]:
    """Decode at several batch sizes, image encoding, the first token after a decoded picture, and their limits."""
    limits = roofline(model, machine)
    found: dict[str, dict[str, float]] = {}
    preset = dataclasses.replace(PRESETS["cpu"], requests=max(batches))
    todo = asks(model.config, preset, seed=300)
    for batch in batches:
        side = Side("")
        same = [dataclasses.replace(ask, tokens=DECODED) for ask in todo[:batch]]
        asyncio.run(by_engine(engine, side, same, [0.0] * batch))
        step = statistics.median(side.itl)
        context = statistics.mean(len(ask.ids) for ask in same) + DECODED / 2
        limit = limits["decode_s"](batch, context)
        found[f"decode, batch {batch}, tokens/s"] = figure(batch / step, batch / limit)
        note(f"decode at batch {batch}")
    to_tensor = MiniGPT4ImageProcessor(model.config.vision_config.image_size).to_tensor
    pixels = [to_tensor(decode_picture(ask.picture.data)) for ask in todo[:32]]
    for count in (1, len(pixels)):
        seconds = timed(lambda count=count: engine._runner.encode(pixels[:count]), model.device)  # type: ignore[misc]
        found[f"image encoding, batch {count}, images/s"] = figure(count / seconds, count / limits["images_s"](count))
    firsts = []
    for ask in asks(model.config, dataclasses.replace(preset, requests=12), seed=400):
        side = Side("")
        short = dataclasses.replace(ask, tokens=1)
        held = asyncio.run(engine._images.resolve([short.picture]))  # decoded before, and kept until it is encoded
        asyncio.run(by_engine(engine, side, [short], [0.0]))
        del held
        firsts += side.ttft
    limit = limits["images_s"](1) + limits["prefill_s"](len(todo[0].ids))
    seconds = statistics.median(firsts)
    found["first token from a decoded picture, ms"] = {
        "measured": round(seconds * 1000, 2),
        "limit": round(limit * 1000, 2),
        "fraction": round(limit / seconds, 3),
    }
    return found


def timed(run: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(5):
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def figure(measured: float, limit: float) -> dict[str, float]:
    return {"measured": round(measured, 1), "limit": round(limit, 1), "fraction": round(measured / limit, 3)}
