"""How much memory a model takes, by arithmetic on its configuration. Loads nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from transformers import LlamaConfig

from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.weights.load import model_shapes

__all__ = ["FORMATS", "PUBLISHED", "Footprint", "footprint", "gib", "published_config", "table"]

PUBLISHED = ("vicuna-7b", "vicuna-13b", "llama2-7b", "v2-7b")
"""The family's published models."""

FORMATS = ("float32", "bfloat16", "int8", "int4")
"""float16 takes as much as bfloat16; with int8 and int4 all but the LLM's inner layers is bfloat16."""

# Bytes per weight. NF4 adds a float32 scale to every block of 64 weights.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 64}


@dataclass(frozen=True)
class Footprint:
    """Memory of a model in bytes.

    Attributes:
        weights: all parameters.
        kv_per_token: keys and values of one position.
        context: positions of the longest chat.
    """

    weights: int
    kv_per_token: int
    context: int

    @property
    def one_chat(self) -> int:
        """Weights and one chat of full length."""
        return self.weights + self.kv_per_token * self.context

    def chats_in(self, memory: int) -> float:
        """Chats of full length that fit beside the weights; negative if not even the weights do."""
        return (memory - self.weights) / (self.kv_per_token * self.context)


def footprint(config: MiniGPT4Config, kind: str) -> Footprint:
    """What a model takes in one of ``FORMATS`` or float16; keys and values are never quantized."""
    return _footprint(config, model_shapes(config), kind)


def _footprint(config: MiniGPT4Config, shapes: Mapping[str, tuple[int, ...]], kind: str) -> Footprint:
    rest = "bfloat16" if kind.startswith("int") else kind
    weights = 0.0
    for name, shape in shapes.items():
        inner = name.startswith("language_model.model.layers.") and len(shape) == 2
        weights += prod(shape) * _BYTES[kind if inner else rest]
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    cached = 2 * text.num_hidden_layers * heads * head * int(_BYTES[rest])
    return Footprint(round(weights), cached, config.max_position_embeddings)


def published_config(name: str) -> MiniGPT4Config:
    """The configuration of one of ``PUBLISHED``."""
    large, vicuna = name.endswith("13b"), name.startswith("vicuna")
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=5120 if large else 4096,
        intermediate_size=13824 if large else 11008,
        num_hidden_layers=40 if large else 32,
        num_attention_heads=40 if large else 32,
        max_position_embeddings=2048 if vicuna else 4096,
    )
    return MiniGPT4Config(
        vision_config={"image_size": 448 if name.startswith("v2") else 224},
        qformer_config={} if vicuna else None,
        text_config=text,
    )


def table() -> Iterator[tuple[str, str, Footprint]]:
    """(model, format, footprint) of every published model in every format."""
    for name in PUBLISHED:
        config = published_config(name)
        shapes = model_shapes(config)
        for kind in FORMATS:
            yield name, kind, _footprint(config, shapes, kind)


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
