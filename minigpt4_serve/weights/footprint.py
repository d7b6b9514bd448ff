"""Memory requirements of a model, computed from its configuration without loading it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from transformers import LlamaConfig

from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.prompt.variants import VARIANTS
from minigpt4_serve.weights.hub import MODELS
from minigpt4_serve.weights.shapes import Shapes, model_shapes

__all__ = ["FORMATS", "Footprint", "footprint", "published_config", "published_footprints"]

FORMATS = ("float32", "bfloat16", "int8", "int4")
"""float16 takes as much as bfloat16. With int8 and int4, only the LLM's inner layers are quantized, the rest is
bfloat16."""

# Bytes per weight. NF4 has one float32 scale per block of 64 weights.
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 64}

_LLM_DIMENSIONS: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


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
        """Weights and the KV cache of one chat of full length."""
        return self.weights + self.kv_per_token * self.context

    def chats_in(self, memory: int) -> float:
        """Chats of full length that fit in ``memory`` bytes beside the weights; negative if the weights don't fit."""
        return (memory - self.weights) / (self.kv_per_token * self.context)


def footprint(config: MiniGPT4Config, kind: str) -> Footprint:
    """The memory of a model in one of ``FORMATS`` or float16. Keys and values are never quantized."""
    return _footprint(config, model_shapes(config), kind)


def _footprint(config: MiniGPT4Config, shapes: Shapes, kind: str) -> Footprint:
    unquantized = "bfloat16" if kind.startswith("int") else kind
    weights = 0.0
    for key, shape in shapes.items():
        is_inner_layer = key.startswith("language_model.model.layers.") and len(shape) == 2
        weights += prod(shape) * _BYTES[kind if is_inner_layer else unquantized]
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    kv_per_token = 2 * text.num_hidden_layers * kv_heads * head_dim * int(_BYTES[unquantized])
    return Footprint(round(weights), kv_per_token, config.max_position_embeddings)


def published_config(name: str) -> MiniGPT4Config:
    """The configuration of a published model, one of ``hub.MODELS``."""
    model = MODELS[name]
    variant = VARIANTS[model.variant]
    text = LlamaConfig(
        vocab_size=32000, max_position_embeddings=variant.context_length, **_LLM_DIMENSIONS[model.llm_size]
    )
    return MiniGPT4Config(
        vision_config={"image_size": variant.image_size},
        qformer_config={} if variant.has_qformer else None,
        text_config=text,
        conversation_format=variant.name,
    )


def published_footprints() -> Iterator[tuple[str, str, Footprint]]:
    """(model, format, footprint) of every published model in every format."""
    for name in MODELS:
        config = published_config(name)
        shapes = model_shapes(config)
        for kind in FORMATS:
            yield name, kind, _footprint(config, shapes, kind)
