"""The engine's share of the device's roofline: decoding, image encoding, time to the first token."""

import asyncio
import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from minigpt4_serve.engine import Engine
from minigpt4_serve.images import decode_image
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from tools.bench.machine import Machine, best_seconds
from tools.bench.measurement import Measurement, log_progress
from tools.bench.stages import run_engine
from tools.bench.workload import DECODED_TOKENS, PRESETS, make_requests

__all__ = ["Roofline", "device_figures"]

_IMAGES = 32  # in the larger of the two image batches
_FIRST_TOKENS = 12  # requests whose time to the first token is measured


@dataclass(frozen=True)
class Roofline:
    """The fewest seconds that a task can take: the larger of its bytes over bandwidth and its operations over peak.

    A step reads all of the LLM's weights once, and the keys and values of each sequence; a token costs two operations
    per weight (Williams, Waterman, Patterson 2009; Kaplan et al. 2020 for the count of operations).
    """

    machine: Machine
    bytes_per_weight: int
    llm_weights: int  # without the embedding, of which a step reads a few rows
    vision_weights: int  # ViT, Q-Former and projection
    kv_bytes_per_token: int
    patches: int
    attention_flops: int  # of one image in the ViT

    @classmethod
    def of(cls, model: MiniGPT4ForConditionalGeneration, machine: Machine) -> "Roofline":
        """The roofline of a model on a machine."""
        text = model.config.get_text_config()
        vision = model.config.vision_config
        llm = sum(p.numel() for p in model.language_model.parameters())
        size = model.dtype.itemsize
        kv_width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        return cls(
            machine=machine,
            bytes_per_weight=size,
            llm_weights=llm - text.vocab_size * text.hidden_size,
            vision_weights=sum(p.numel() for p in model.parameters()) - llm,
            kv_bytes_per_token=2 * text.num_hidden_layers * kv_width * size,
            patches=patches,
            attention_flops=4 * vision.num_hidden_layers * vision.hidden_size * patches**2,
        )

    def decode_seconds(self, batch: int, context: float) -> float:
        """One decode step of ``batch`` sequences with ``context`` tokens each."""
        read = self.llm_weights * self.bytes_per_weight + batch * context * self.kv_bytes_per_token
        return self._seconds(read, 2 * self.llm_weights * batch)

    def prefill_seconds(self, tokens: int) -> float:
        """Prefill of one prompt of ``tokens`` tokens."""
        return self._seconds(self.llm_weights * self.bytes_per_weight, 2 * self.llm_weights * tokens)

    def image_seconds(self, images: int) -> float:
        """Encoding a batch of images."""
        operations = images * (2 * self.vision_weights * self.patches + self.attention_flops)
        return self._seconds(self.vision_weights * self.bytes_per_weight, operations)

    def _seconds(self, read: float, operations: float) -> float:
        return max(read / self.machine.bandwidth, operations / self.machine.flops)


def device_figures(
    model: MiniGPT4ForConditionalGeneration, engine: Engine, machine: Machine, batches: Iterable[int]
) -> dict[str, dict[str, float]]:
    """Decode at several batch sizes, image encoding, the first token after a decoded image, and their limits."""
    limits = Roofline.of(model, machine)
    batches = list(batches)
    figures: dict[str, dict[str, float]] = {}
    preset = dataclasses.replace(PRESETS["cpu"], requests=max([*batches, _IMAGES]))
    requests = [
        dataclasses.replace(one, answer_tokens=DECODED_TOKENS) for one in make_requests(model.config, preset, seed=300)
    ]
    for batch in batches:
        measured = Measurement(f"decode, batch {batch}")
        asyncio.run(run_engine(engine, measured, requests[:batch]))
        step = statistics.median(measured.itl)
        context = statistics.mean(len(one.ids) for one in requests[:batch]) + DECODED_TOKENS / 2
        figures[f"{measured.name}, tokens/s"] = _figure(batch / step, batch / limits.decode_seconds(batch, context))
        log_progress(measured.name)
    to_tensor = MiniGPT4ImageProcessor(model.config.vision_config.image_size).to_tensor
    pixels = torch.stack([to_tensor(decode_image(one.image.data)) for one in requests[:_IMAGES]])
    for count in (1, _IMAGES):
        seconds = _encode_seconds(model, pixels[:count])
        limit = limits.image_seconds(count)
        figures[f"image encoding, batch {count}, images/s"] = _figure(count / seconds, count / limit)
    first_tokens = []
    for one in make_requests(model.config, dataclasses.replace(preset, requests=_FIRST_TOKENS), seed=400):
        measured = Measurement("first token")
        asyncio.run(run_engine(engine, measured, [dataclasses.replace(one, answer_tokens=1)]))
        first_tokens.append(measured.ttft[0] - measured.image_decode_seconds)
    limit = limits.image_seconds(1) + limits.prefill_seconds(len(requests[0].ids))
    seconds = statistics.median(first_tokens)
    figures["first token from a decoded image, ms"] = {
        "measured": round(seconds * 1000, 2),
        "limit": round(limit * 1000, 2),
        "fraction": round(limit / seconds, 3),
    }
    return figures


@torch.inference_mode()
def _encode_seconds(model: MiniGPT4ForConditionalGeneration, pixels: torch.Tensor) -> float:
    """From pixels ``[N, 3, side, side]`` on the host to the LLM's rows on the device."""
    return best_seconds(lambda: model.get_image_features(pixels.to(model.device)), model.device, repeats=5)


def _figure(measured: float, limit: float) -> dict[str, float]:
    """Two rates and their ratio."""
    return {"measured": round(measured, 1), "limit": round(limit, 1), "fraction": round(measured / limit, 3)}
