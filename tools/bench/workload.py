"""The benchmarks' workload: presets, random models of any size, and prompts with images."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from minigpt4_serve.images import EncodedImage, ImageLimits, validate_image
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4_serve.protocol import Prompt, SamplingParams
from minigpt4_serve.weights.footprint import footprint, published_config

__all__ = [
    "DECODED_TOKENS",
    "PRESETS",
    "WEIGHTS",
    "BenchRequest",
    "NumericTokenizer",
    "Preset",
    "draw_image",
    "kv_cache_bytes",
    "make_requests",
    "random_model",
]

DECODED_TOKENS = 200
"""Length of each answer where decoding is compared with the roofline."""
WEIGHTS = ("7b", "13b", "17m", "tiny")
"""Sizes of random models."""

_SYSTEM_TOKENS = 41
_QUESTION_TOKENS = (8, 24)


@dataclass(frozen=True)
class Preset:
    """The size of a workload.

    Attributes:
        weights: size of the random model.
        requests: in each round of the burst.
        answer_tokens: shortest and longest answer.
        turns: of the conversation.
        threads: PyTorch's on CPUs; its own choice if None.
    """

    weights: str
    requests: int
    rounds: int
    answer_tokens: tuple[int, int]
    turns: int
    max_running: int
    threads: int | None = None


PRESETS = {
    "cpu": Preset("17m", requests=32, rounds=2, answer_tokens=(8, 64), turns=8, max_running=32, threads=1),
    "gpu": Preset("7b", requests=64, rounds=2, answer_tokens=(16, 128), turns=8, max_running=128),
    "smoke": Preset("tiny", requests=4, rounds=1, answer_tokens=(2, 6), turns=2, max_running=4, threads=1),
}


def model_config(weights: str) -> MiniGPT4Config:
    """Dimensions of the published 7b and 13b, of a 17-million-parameter model, or of a toy."""
    if weights in ("7b", "13b"):
        return published_config(f"vicuna-{weights}")
    hidden, layers, vocabulary, side = {"17m": (384, 6, 8000, 224), "tiny": (32, 2, 512, 28)}[weights]
    small: dict[str, Any] = {"hidden_size": hidden // 2, "num_attention_heads": 4, "intermediate_size": hidden}
    return MiniGPT4Config(
        vision_config=Blip2VisionConfig(**small, num_hidden_layers=4, image_size=side, initializer_range=0.02),
        qformer_config=Blip2QFormerConfig(**small, num_hidden_layers=2, hidden_dropout_prob=0.0),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32 * 2 if hidden > 32 else 4,
            max_position_embeddings=2048,
            initializer_range=0.1,
        ),
        num_query_tokens=32,
    )


def random_model(weights: str, device: torch.device, dtype: torch.dtype) -> MiniGPT4ForConditionalGeneration:
    """A random model, created on its device: 7B parameters never exist in host memory."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MiniGPT4ForConditionalGeneration(model_config(weights))
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


class NumericTokenizer:
    """A vocabulary without a file: the text of an id is its number."""

    eos_token_id = 2

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode_ids(self, ids: Sequence[int]) -> str:
        """The numbers, each after a space."""
        return "".join(f" {token}" for token in ids)


@dataclass(frozen=True)
class BenchRequest:
    """A prompt with one image, and the length of its answer in tokens."""

    ids: tuple[int, ...]
    image: EncodedImage
    answer_tokens: int

    @property
    def prompt(self) -> Prompt:
        """The prompt as the engine's input."""
        return Prompt(self.ids, (self.image,))

    @property
    def sampling(self) -> SamplingParams:
        """Greedy decoding to exactly ``answer_tokens``."""
        return SamplingParams(max_tokens=self.answer_tokens, ignore_eos=True)


def draw_image(seed: int) -> EncodedImage:
    """A JPEG of 320 × 240 pixels, different for each seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", (320, 240), (seed % 251, seed * 7 % 251, seed * 13 % 251))
    canvas = ImageDraw.Draw(image)
    for _ in range(20):
        x = rng.randrange(280)
        y = rng.randrange(200)
        canvas.ellipse((x, y, x + 40, y + 40), fill=tuple(rng.randrange(256) for _ in range(3)))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return validate_image(file.getvalue(), ImageLimits())


def kv_cache_bytes(model: MiniGPT4ForConditionalGeneration, preset: Preset) -> int:
    """Bytes of a KV cache for ``max_running`` sequences of the longest prompt and answer, plus 16 positions each."""
    prompt = _SYSTEM_TOKENS + model.config.num_image_tokens + _QUESTION_TOKENS[1]
    positions = prompt + max(DECODED_TOKENS, preset.answer_tokens[1]) + 16
    return (
        preset.max_running * positions * footprint(model.config, str(model.dtype).removeprefix("torch.")).kv_per_token
    )


def make_requests(config: MiniGPT4Config, preset: Preset, seed: int) -> list[BenchRequest]:
    """Requests with a common system prompt; each has an image of its own and a question of 8–24 tokens."""
    rng = random.Random(seed)
    shared = random.Random(0)
    vocabulary = config.get_text_config().vocab_size
    system = [1, *(shared.randrange(3, vocabulary) for _ in range(_SYSTEM_TOKENS - 1))]
    image = [config.image_token_id] * config.num_image_tokens
    return [
        BenchRequest(
            (*system, *image, *(rng.randrange(3, vocabulary) for _ in range(rng.randint(*_QUESTION_TOKENS)))),
            draw_image(seed * 1000 + i),
            rng.randint(*preset.answer_tokens),
        )
        for i in range(preset.requests)
    ]
