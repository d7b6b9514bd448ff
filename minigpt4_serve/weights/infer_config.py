"""Infers a model's configuration from the shapes of the original's tensors."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.model_folder import read_json_object
from minigpt4_serve.prompt.variants import Variant
from minigpt4_serve.weights.config_values import plain_values
from minigpt4_serve.weights.reader import LazyTensor

__all__ = ["Hyperparameters", "infer_config", "read_llm_config"]

_PATCHES_PER_TOKEN = 4
_PRETRAINED_IMAGE_SIZE = 224  # of the published vision tower, in pixels

_VIT_FILE = "The ViT file"
_QFORMER_FILE = "The Q-Former file"


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What tensor shapes don't determine. None is the published value, if the module has the published width.

    Attributes:
        vit_heads: attention heads of the vision tower.
        vit_depth: blocks to use; the published file has one more, which MiniGPT-4 was trained without.
        image_size: side of the square input image in pixels.
        qformer_heads: attention heads of the Q-Former.
        lora_alpha: LoRA's alpha.

    Raises:
        InvalidRequest: a value isn't positive.
    """

    vit_heads: int | None = None
    vit_depth: int | None = None
    image_size: int | None = None
    qformer_heads: int | None = None
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise InvalidRequest(f"{_option(name)} must be more than 0, not {value}.", param=name)


_PUBLISHED = {1408: {"vit_heads": 16, "vit_depth": 39}, 768: {"qformer_heads": 12}}
"""Width of a published vision tower or Q-Former → its hyperparameters."""


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _hyperparameter(given: Hyperparameters, name: str, width: int, module: str) -> int:
    """The given or published value of a hyperparameter of a module of that width."""
    value = getattr(given, name) or _PUBLISHED.get(width, {}).get(name)
    what = "heads" if name.endswith("heads") else "blocks"
    if value is None:
        raise InvalidRequest(
            f"The {module} has width {width}, unlike the published one, so its number of {what} is unknown: set "
            f"{_option(name)}.",
            param=name,
        )
    if what == "heads" and width % value:
        raise InvalidRequest(f"{_option(name)} {value} doesn't divide the {module}'s width of {width}.", param=name)
    return int(value)


def read_llm_config(folder: Path) -> LlamaConfig:
    """The LLM's configuration, with the family's special token ids, which early conversions got wrong.

    Raises:
        WeightsError: not a LLaMA, or a quantized one.
    """
    path = folder / "config.json"
    values = read_json_object(path)
    model_type = values.get("model_type")
    if model_type != "llama":
        raise WeightsError(
            f"{folder} contains an LLM of type {model_type!r}; MiniGPT-4 needs a LLaMA: Vicuna v0 or Llama-2 chat."
        )
    if values.get("quantization_config") is not None:
        raise WeightsError(
            f"{folder} holds quantized weights. Convert the full ones (float16) and choose int8 or int4 when you serve."
        )
    values = plain_values(values, path)
    try:
        # AutoConfig would offer to run the folder's Python code if the file has an auto_map.
        config = LlamaConfig.from_dict(values)
    except Exception as error:  # transformers raises any kind for values of the wrong type
        raise WeightsError(f"{path} is damaged; download it again.") from error
    config.name_or_path = ""
    config.bos_token_id = 1
    config.eos_token_id = 2
    config.pad_token_id = None
    return config


def infer_config(
    *,
    variant: Variant,
    text: LlamaConfig,
    vision: Mapping[str, LazyTensor],
    qformer: Mapping[str, LazyTensor] | None,
    lora: dict[str, Any] | None,
    hyperparameters: Hyperparameters,
) -> MiniGPT4Config:
    """The configuration of a model with these tensors, which have the original's keys.

    Raises:
        WeightsError: a tensor that determines a dimension is missing.
        InvalidRequest: a hyperparameter must be set, or its value is impossible.
    """
    width = _shape(vision, "cls_token", _VIT_FILE)[-1]
    patch = _shape(vision, "patch_embed.proj.weight", _VIT_FILE)[-1]
    side = math.isqrt(_shape(vision, "pos_embed", _VIT_FILE)[1] - 1)
    scale = variant.image_size // _PRETRAINED_IMAGE_SIZE  # v2's images are twice as large as in pretraining
    image_size = hyperparameters.image_size or side * patch * scale
    patches = (image_size // patch) ** 2
    if not patches or (qformer is None and patches % _PATCHES_PER_TOKEN):
        raise InvalidRequest(
            f"Images of {image_size} pixels make {patches} patches, which can't be grouped by {_PATCHES_PER_TOKEN}: "
            f"set another --image-size, such as {2 * patch * max(side // 2, 1)}.",
            param="image_size",
        )
    return MiniGPT4Config(
        vision_config={
            "hidden_size": width,
            "intermediate_size": _shape(vision, "blocks.0.mlp.fc1.weight", _VIT_FILE)[0],
            "num_hidden_layers": _hyperparameter(hyperparameters, "vit_depth", width, "vision tower"),
            "num_attention_heads": _hyperparameter(hyperparameters, "vit_heads", width, "vision tower"),
            "image_size": image_size,
            "patch_size": patch,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "qkv_bias": True,
        },
        qformer_config=None if qformer is None else _infer_qformer_config(qformer, hyperparameters),
        num_query_tokens=32 if qformer is None else _shape(qformer, "query_tokens", _QFORMER_FILE)[1],
        text_config=text,
        patches_per_token=_PATCHES_PER_TOKEN,
        conversation_format=variant.name,
        image_token_id=text.vocab_size,
        lora_config=lora,
    )


def _infer_qformer_config(tensors: Mapping[str, LazyTensor], hyperparameters: Hyperparameters) -> dict[str, Any]:
    layer = "Qformer.bert.encoder.layer."
    hidden = _shape(tensors, "query_tokens", _QFORMER_FILE)[-1]
    layers = {int(key.removeprefix(layer).partition(".")[0]) for key in tensors if key.startswith(layer)}
    if layers != set(range(len(layers))):
        raise WeightsError(f"{_QFORMER_FILE} is damaged: its layers aren't numbered from 0 without gaps.")
    with_cross_attention = sorted(i for i in layers if f"{layer}{i}.crossattention.self.key.weight" in tensors)
    if len(with_cross_attention) > 1:
        frequency = with_cross_attention[1] - with_cross_attention[0]
    else:
        frequency = max(len(layers), 1)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": max(layers, default=-1) + 1,
        "num_attention_heads": _hyperparameter(hyperparameters, "qformer_heads", hidden, "Q-Former"),
        "intermediate_size": _shape(tensors, f"{layer}0.intermediate_query.dense.weight", _QFORMER_FILE)[0],
        "cross_attention_frequency": frequency,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_qformer_text_input": False,
    }


def _shape(tensors: Mapping[str, LazyTensor], key: str, file: str) -> tuple[int, ...]:
    if key not in tensors:
        raise WeightsError(f"{file} has no tensor {key}: check that it is the right file.", missing=[key])
    return tensors[key].shape
