"""Plans a conversion: decides where every tensor of the new model comes from, and checks that none is missing.

Reads keys, shapes and one tensor, and writes nothing. Most mistakes with the original's files are detected here, within
seconds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error, WeightsError
from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.prompt.variants import VARIANTS, Variant
from minigpt4_serve.weights import assemble, key_maps
from minigpt4_serve.weights.infer_config import Hyperparameters, infer_config, read_llm_config
from minigpt4_serve.weights.reader import LazyTensor, llm_files, open_tensors
from minigpt4_serve.weights.shapes import Shapes, compare_shapes, model_shapes

__all__ = ["Files", "Plan", "make_plan"]

_LORA_SCALING = 0.25  # alpha / rank of the published model: 16 / 64
_MAX_DELTA_NORM = 0.1  # mean of a final norm: 1 to 2.5 in trained models, about 0 in the difference between two
_LLAMA2_CONTEXT = 4096  # the first LLaMA has half of it


@dataclass(frozen=True, kw_only=True)
class Files:
    """The original's files of one model.

    Attributes:
        llm: the LLM's folder in Hugging Face layout, with safetensors files or ``.bin`` shards.
        vit: ``eva_vit_g.pth``.
        checkpoint: MiniGPT-4's own ``.pth``.
        qformer: ``blip2_pretrained_flant5xxl.pth``, for variants with a Q-Former.
    """

    llm: Path
    vit: Path
    checkpoint: Path
    qformer: Path | None = None

    def by_role(self) -> dict[str, list[Path]]:
        """Role → every file that is read for it."""
        roles = {"checkpoint": [self.checkpoint], "vit": [self.vit]}
        if self.qformer is not None:
            roles["qformer"] = [self.qformer]
        return roles | {"llm": [self.llm / "config.json", self.llm / "tokenizer.model", *llm_files(self.llm)]}


@dataclass
class Plan:
    """A complete model before it is written.

    Attributes:
        config: its configuration.
        tensors: all of its tensors by key, in the model's order.
        notes: unusual properties of the files, for users.
    """

    config: MiniGPT4Config
    tensors: dict[str, LazyTensor]
    notes: list[str]


@dataclass
class _Mapped:
    """Tensors by their new keys, keys that no key map has, and notes, collected file by file."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, source: Path, tensors: Mapping[str, LazyTensor], key_map: key_maps.KeyMap) -> None:
        """Map a file's tensors. Later files override earlier ones, as in the original."""
        for key, tensor in tensors.items():
            known, new_key = key_maps.map_key(key, key_map)
            if new_key is not None:
                self.tensors[new_key] = tensor
            elif not known:
                self.unexpected.append(f"{key}  ({source.name})")


def make_plan(
    files: Files, variant: Variant, *, keep_lora: bool = False, hyperparameters: Hyperparameters | None = None
) -> Plan:
    """Map every tensor of the files and check that the result is a complete model.

    Raises:
        InvalidRequest: a file doesn't exist, an argument doesn't apply to the variant, or a hyperparameter must be set.
        WeightsError: wrong files; has all missing and unexpected keys.
    """
    if keep_lora and not variant.has_lora:
        raise InvalidRequest(f"The {variant.name} variant has no LoRA: leave --keep-lora out.")
    if variant.has_qformer and files.qformer is None:
        raise InvalidRequest(
            f"The {variant.name} variant has a Q-Former: set --qformer to blip2_pretrained_flant5xxl.pth."
        )
    if not variant.has_qformer and files.qformer is not None:
        # The file also has BLIP-2's ln_vision, which the original doesn't load without a Q-Former.
        raise InvalidRequest(f"The {variant.name} variant has no Q-Former: leave --qformer out.")
    try:
        return _plan(files, variant, keep_lora=keep_lora, hyperparameters=hyperparameters or Hyperparameters())
    except MiniGPT4Error:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:  # shapes that fit nothing
        raise WeightsError(
            "The files' tensors have shapes that no MiniGPT-4 has: one of the files is damaged or another model's."
        ) from error


def _plan(files: Files, variant: Variant, *, keep_lora: bool, hyperparameters: Hyperparameters) -> Plan:
    checkpoint = _open(files.checkpoint, "llama_proj.weight", "--checkpoint")
    vision = _open(files.vit, "cls_token", "--vit")
    qformer = None if files.qformer is None else _open(files.qformer, "query_tokens", "--qformer")
    shards = llm_files(files.llm)
    text = read_llm_config(files.llm)
    mapped = _Mapped()
    for path in shards:
        mapped.add(path, open_tensors(path), key_maps.LLM)
    _check_llm(mapped, text, files.llm, variant)
    lora = _lora_config(checkpoint, hyperparameters)
    _check_variant(variant, files.checkpoint, has_lora=lora is not None)
    config = infer_config(
        variant=variant,
        text=text,
        vision=vision,
        qformer=qformer,
        lora=lora if keep_lora else None,
        hyperparameters=hyperparameters,
    )
    depth = config.vision_config.num_hidden_layers
    mapped.add(files.vit, {k: t for k, t in vision.items() if _block_number(k) < depth}, key_maps.VISION)
    if qformer is not None and files.qformer is not None:
        mapped.add(files.qformer, qformer, key_maps.QFORMER)
    mapped.add(files.checkpoint, checkpoint, key_maps.CHECKPOINT)
    _check_projection(mapped.tensors["language_projection.weight"].shape, config, variant, files.checkpoint)
    assemble.join_attention_bias(mapped.tensors, config)
    assemble.interpolate_pos_embed(mapped.tensors, config)
    if qformer is None:
        assemble.add_identity_layernorm(mapped.tensors, config)
    if lora is not None and not keep_lora:
        assemble.merge_lora(mapped.tensors, scaling=lora["lora_alpha"] / lora["r"])
    try:
        required = model_shapes(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{files.llm / 'config.json'} describes no LLaMA that can be built.") from error
    return Plan(config, _complete(mapped, required, variant), mapped.notes)


def _open(path: Path, key: str, option: str) -> dict[str, LazyTensor]:
    """A file's tensors; rejects a file that belongs to another option."""
    tensors = open_tensors(path)
    if key in tensors:
        return tensors
    kinds = {
        "llama_proj.weight": "a MiniGPT-4 checkpoint (--checkpoint)",
        "query_tokens": "a Q-Former file (--qformer)",
        "blocks.0.attn.qkv.weight": "a vision tower (--vit)",
        "model.embed_tokens.weight": "an LLM (--llm)",
    }
    kind = next((text for typical_key, text in kinds.items() if typical_key in tensors), None)
    hint = f"it looks like {kind}" if kind else f"it has {len(tensors)} tensors, such as {next(iter(tensors))}"
    raise WeightsError(f"{path} can't be used for {option}: {hint}.", missing=[key])


def _block_number(key: str) -> int:
    """Number of the vision tower's block that a tensor belongs to; -1 outside of blocks."""
    match = re.match(r"blocks\.(\d+)\.", key)
    return int(match[1]) if match else -1


def _complete(mapped: _Mapped, required: Shapes, variant: Variant) -> dict[str, LazyTensor]:
    """The tensors in the model's order, after checking their keys and shapes."""
    missing = required.keys() - mapped.tensors.keys()
    unexpected = [*(mapped.tensors.keys() - required.keys()), *mapped.unexpected]
    if missing or unexpected:
        raise WeightsError(
            f"The files aren't a complete {variant.name} model: {len(missing)} missing keys, "
            f"{len(unexpected)} unexpected keys.",
            missing=missing,
            unexpected=unexpected,
        )
    compare_shapes({key: tensor.shape for key, tensor in mapped.tensors.items()}, required, what="The set of files")
    return {key: mapped.tensors[key] for key in required}


def _check_llm(mapped: _Mapped, text: LlamaConfig, llm: Path, variant: Variant) -> None:
    """Detect common mistakes with LLM folders, such as delta weights, which would only produce gibberish."""
    embedding = mapped.tensors.get("language_model.model.embed_tokens.weight")
    norm = mapped.tensors.get("language_model.model.norm.weight")
    if embedding is None or norm is None:
        raise WeightsError(
            f"{llm} contains no complete LLaMA.", missing=["model.embed_tokens.weight", "model.norm.weight"]
        )
    if len(embedding.shape) != 2:
        raise WeightsError(f"{llm} is damaged: model.embed_tokens.weight has shape {list(embedding.shape)}.")
    rows, width = embedding.shape
    if width != text.hidden_size:
        raise WeightsError(f"{llm}/config.json has hidden size {text.hidden_size}, but the embedding's is {width}.")
    if norm.shape != (width,):
        raise WeightsError(f"{llm} is damaged: model.norm.weight has shape {list(norm.shape)}, not [{width}].")
    if norm.read().float().abs().mean() < _MAX_DELTA_NORM:
        raise WeightsError(
            f"{llm} contains delta weights: the difference between Vicuna and LLaMA, not Vicuna itself. Add them to "
            "the LLaMA weights first (FastChat's apply_delta), or use merged weights."
        )
    if rows != text.vocab_size:
        mapped.notes.append(
            f"The LLM's config.json has a vocabulary of {text.vocab_size}, its embedding has {rows} rows."
        )
        text.vocab_size = rows
    is_llama2 = text.max_position_embeddings >= _LLAMA2_CONTEXT
    if is_llama2 != (variant.context_length >= _LLAMA2_CONTEXT):
        base = "Llama-2, like Vicuna v1.5" if is_llama2 else "the first LLaMA"
        mapped.notes.append(
            f"The LLM's context of {text.max_position_embeddings} is that of {base}; this variant needs {variant.llm}."
        )


def _check_variant(variant: Variant, checkpoint: Path, *, has_lora: bool) -> None:
    if has_lora and not variant.has_lora:
        raise WeightsError(f"{checkpoint} has LoRA weights: use {_options(lambda other: other.has_lora)}.")
    if variant.has_lora and not has_lora:
        raise WeightsError(
            f"{checkpoint} has no LoRA weights, so it is no {variant.name} checkpoint: use "
            f"{_options(lambda other: not other.has_lora)}."
        )


def _check_projection(shape: tuple[int, ...], config: MiniGPT4Config, variant: Variant, checkpoint: Path) -> None:
    """Check that the projection was trained for this vision encoder and this LLM."""
    rows, columns = shape
    hidden = config.text_config.hidden_size
    if config.qformer_config is None:
        expected = config.vision_config.hidden_size * config.patches_per_token
    else:
        expected = config.qformer_config.hidden_size
    if columns != expected:
        others = _options(lambda other: other.has_qformer != variant.has_qformer and other.has_lora == variant.has_lora)
        raise WeightsError(
            f"{checkpoint} has a projection from size {columns}, this variant's image tokens have size {expected}: it "
            f"belongs to another variant{f', probably {others}' if others else ''}."
        )
    if rows != hidden:
        sizes = {4096: " (7B)", 5120: " (13B)"}
        raise WeightsError(
            f"{checkpoint} was trained for an LLM of hidden size {rows}{sizes.get(rows, '')}, but --llm has "
            f"{hidden}{sizes.get(hidden, '')}: use the LLM of the same size."
        )


def _options(matches: Callable[[Variant], bool]) -> str:
    """``--variant`` options of the matching variants."""
    return " or ".join(f"--variant {variant.name}" for variant in VARIANTS.values() if matches(variant))


def _lora_config(checkpoint: Mapping[str, LazyTensor], hyperparameters: Hyperparameters) -> dict[str, Any] | None:
    """Rank, alpha and target modules of a checkpoint's LoRA; None if it has none."""
    modules: set[str] = set()
    rank = 0
    for key, tensor in checkpoint.items():
        new_key = key_maps.map_key(key, key_maps.CHECKPOINT)[1] or ""
        if new_key.endswith(".lora_A.weight"):
            modules.add(new_key.split(".")[-3])
            rank = tensor.shape[0]
    if not modules:
        return None
    alpha = hyperparameters.lora_alpha or rank * _LORA_SCALING
    return {"r": rank, "lora_alpha": alpha, "target_modules": sorted(modules)}
