"""The shape of a model, read from its files. Knows tensors' shapes and the family's rules, never their values."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.weights.reader import LazyTensor

__all__ = ["Hyperparameters", "Variant", "infer_config", "read_llm_config"]

Variant = Literal["vicuna", "llama2", "v2"]

_PATCHES_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What no tensor tells. None stands for the published value, which counts if the part has the published width.

    Attributes:
        vit_heads: attention heads of the vision tower.
        vit_depth: blocks that are used; the published file has one more, whose output nothing reads.
        image_size: side of the square picture in pixels.
        qformer_heads: attention heads of the Q-Former.
        lora_alpha: LoRA's alpha.
    """

    vit_heads: int | None = None
    vit_depth: int | None = None
    image_size: int | None = None
    qformer_heads: int | None = None
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise InvalidRequest(f"--{name.replace('_', '-')} must be more than 0, not {value}.", param=name)

    def completed(self, vit: Path, variant: Variant) -> "Hyperparameters":
        """With the gaps filled from a ``MANIFEST.json`` beside the ViT file or in the folder above, if there is one.

        That is where sets of files in the original layout but of other sizes say theirs, under ``config``.
        """
        for folder in (vit.resolve().parent, vit.resolve().parent.parent):
            try:
                told = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))["config"]
                known = {
                    "vit_heads": told.get("vit_heads"),
                    "vit_depth": told.get("vit_depth"),
                    "image_size": told.get("v2_image_size" if variant == "v2" else "v1_image_size"),
                    "qformer_heads": told.get("qf_heads"),
                    "lora_alpha": told.get("lora_alpha"),
                }
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            return Hyperparameters(
                **{**known, **{name: value for name, value in asdict(self).items() if value is not None}}
            )
        return self


_PUBLISHED = {1408: {"vit_heads": 16, "vit_depth": 39}, 768: {"qformer_heads": 12}}
"""Width → what the published tower and Q-Former of that width have."""


def _number(hyperparameters: Hyperparameters, name: str, width: int, part: str) -> int:
    value = getattr(hyperparameters, name) or _PUBLISHED.get(width, {}).get(name)
    option = "--" + name.replace("_", "-")
    if value is None:
        raise InvalidRequest(
            f"The {part} is {width} wide, unlike the published one, and no tensor tells its number of "
            f"{'heads' if name.endswith('heads') else 'blocks'}: give {option}.",
            param=name,
        )
    if name.endswith("heads") and width % value:
        raise InvalidRequest(f"{option} {value} doesn't divide the {part}'s width of {width}.", param=name)
    return int(value)


def read_llm_config(folder: Path) -> LlamaConfig:
    """The LLM's configuration, with the special ids that the family needs whatever early conversions wrote.

    Raises:
        WeightsError: no LLaMA, or a quantized one.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        # Not by AutoConfig: with an auto_map in the file it offers to run the Python in the folder.
        config = LlamaConfig.from_pretrained(folder, local_files_only=True) if kind == "llama" else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise WeightsError(f"{folder / 'config.json'} is damaged; download it again.") from error
    if config is None:
        raise WeightsError(
            f"{folder} holds an LLM of type {kind!r}; MiniGPT-4 needs a LLaMA: Vicuna v0 or Llama-2 chat."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise WeightsError(
            f"{folder} holds quantized weights. Convert the full ones (float16) and choose int8 or int4 when you serve."
        )
    config.name_or_path = ""
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, None
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
    """The configuration that fits tensors under the original's names.

    Raises:
        WeightsError: a tensor that tells a dimension is missing.
        InvalidRequest: something that no tensor tells must be given, or can't be right.
    """
    width = _shape(vision, "cls_token", "the ViT file")[-1]
    patch = _shape(vision, "patch_embed.proj.weight", "the ViT file")[-1]
    side = math.isqrt(_shape(vision, "pos_embed", "the ViT file")[1] - 1)
    # v2 looks at twice the resolution that the tower was trained at.
    image_size = hyperparameters.image_size or side * patch * (2 if variant == "v2" else 1)
    patches = (image_size // patch) ** 2
    if not patches or (qformer is None and patches % _PATCHES_PER_TOKEN):
        raise InvalidRequest(
            f"Pictures of {image_size} pixels make {patches} patches, which can't be joined by {_PATCHES_PER_TOKEN}: "
            f"give another --image-size, such as {2 * patch * max(side // 2, 1)}.",
            param="image_size",
        )
    return MiniGPT4Config(
        vision_config={
            "hidden_size": width,
            "intermediate_size": _shape(vision, "blocks.0.mlp.fc1.weight", "the ViT file")[0],
            "num_hidden_layers": _number(hyperparameters, "vit_depth", width, "vision tower"),
            "num_attention_heads": _number(hyperparameters, "vit_heads", width, "vision tower"),
            "image_size": image_size,
            "patch_size": patch,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "qkv_bias": True,
        },
        qformer_config=None if qformer is None else _qformer_config(qformer, hyperparameters),
        num_query_tokens=32 if qformer is None else _shape(qformer, "query_tokens", "the Q-Former file")[1],
        text_config=text,
        patches_per_token=_PATCHES_PER_TOKEN,
        conversation_format=variant,
        image_token_id=text.vocab_size,
        lora_config=lora,
    )


def _qformer_config(tensors: Mapping[str, LazyTensor], hyperparameters: Hyperparameters) -> dict[str, Any]:
    layer = "Qformer.bert.encoder.layer."
    hidden = _shape(tensors, "query_tokens", "the Q-Former file")[-1]
    layers = {int(name.removeprefix(layer).partition(".")[0]) for name in tensors if name.startswith(layer)}
    crossing = sorted(i for i in layers if f"{layer}{i}.crossattention.self.key.weight" in tensors)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": max(layers, default=-1) + 1,
        "num_attention_heads": _number(hyperparameters, "qformer_heads", hidden, "Q-Former"),
        "intermediate_size": _shape(tensors, f"{layer}0.intermediate_query.dense.weight", "the Q-Former file")[0],
        "cross_attention_frequency": crossing[1] - crossing[0] if len(crossing) > 1 else max(len(layers), 1),
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_qformer_text_input": False,
    }


def _shape(tensors: Mapping[str, LazyTensor], name: str, where: str) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{where[0].upper()}{where[1:]} has no tensor {name}: is it the right file?", missing=[name])
    return tensors[name].shape
