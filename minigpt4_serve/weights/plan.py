"""Where every tensor of the new model comes from. Reads names and shapes, and two norms; writes nothing.

Nearly every mistake with the original's files is recognised here, within seconds, and explained.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.weights import assemble, key_maps
from minigpt4_serve.weights.infer_config import Hyperparameters, Variant, infer_config, read_llm_config
from minigpt4_serve.weights.load import compare_shapes, model_shapes
from minigpt4_serve.weights.reader import LazyTensor, llm_files, open_tensors

__all__ = ["Files", "Plan", "make_plan"]

_LORA_SCALING = 0.25  # alpha / rank of the published model: 16 / 64
_DELTA_NORM = 0.1  # a trained final norm is about 1 to 2.5, the difference between two tunings of one model about 0


@dataclass(frozen=True, kw_only=True)
class Files:
    """The original's files of one model.

    Attributes:
        llm: the LLM's folder in Hugging Face layout, safetensors or ``.bin`` shards.
        vit: ``eva_vit_g.pth``.
        checkpoint: MiniGPT-4's own ``.pth``.
        qformer: ``blip2_pretrained_flant5xxl.pth``; only the Vicuna variant has one.
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
    """A complete model that hasn't been written yet.

    Attributes:
        config: of the new model.
        tensors: every tensor of it, under its new name, in the model's order.
        notes: what is unusual about the files, for whoever converts them.
    """

    config: MiniGPT4Config
    tensors: dict[str, LazyTensor]
    notes: list[str]


@dataclass
class _Table:
    """Tensors under their new names, names that no table knows, and remarks, while files are laid over each other."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, source: Path, tensors: Mapping[str, LazyTensor], table: key_maps.KeyMap) -> None:
        """Map a file's tensors; a later file lies over an earlier one, as the original loads them."""
        for name, tensor in tensors.items():
            known, new = key_maps.map_key(name, table)
            if new is not None:
                self.tensors[new] = tensor
            elif not known:
                self.strays.append(f"{name}  ({source.name})")


def make_plan(
    files: Files, variant: Variant, *, keep_lora: bool = False, hyperparameters: Hyperparameters | None = None
) -> Plan:
    """Map every tensor of the files and prove that the result is a whole model of its configuration.

    Raises:
        InvalidRequest: a file isn't there, or something that no tensor tells must be given.
        WeightsError: files that aren't what they should be; names every tensor at fault.
    """
    if keep_lora and variant != "v2":
        raise InvalidRequest(f"The {variant} variant has no LoRA: leave --keep-lora out.")
    if variant == "vicuna" and files.qformer is None:
        raise InvalidRequest("The Vicuna variant has a Q-Former: give --qformer blip2_pretrained_flant5xxl.pth.")
    if variant != "vicuna" and files.qformer is not None:
        # BLIP-2's ln_vision, which lies in that file too, would spoil this variant: the original never opens it here.
        raise InvalidRequest(f"The {variant} variant has no Q-Former: leave --qformer out.")
    hyperparameters = (hyperparameters or Hyperparameters()).completed(files.vit, variant)
    made = _Table()
    trained = _open(files.checkpoint, "llama_proj.weight", "--checkpoint")
    vision = _open(files.vit, "cls_token", "--vit")
    blip = None if files.qformer is None else _open(files.qformer, "query_tokens", "--qformer")
    shards = llm_files(files.llm)
    text = read_llm_config(files.llm)
    for path in shards:
        made.add(path, open_tensors(path), key_maps.LLM)
    _check_llm(made, text, files.llm, variant)
    lora = _lora_config(trained, hyperparameters)
    _check_variant(variant, lora, files.checkpoint)
    config = infer_config(
        variant=variant,
        text=text,
        vision=vision,
        qformer=blip,
        lora=lora if keep_lora else None,
        hyperparameters=hyperparameters,
    )
    depth = config.vision_config.num_hidden_layers
    made.add(files.vit, {n: t for n, t in vision.items() if _block(n) < depth}, key_maps.VISION)
    if blip is not None and files.qformer is not None:
        made.add(files.qformer, blip, key_maps.QFORMER)
    made.add(files.checkpoint, trained, key_maps.CHECKPOINT)
    _check_projection(made.tensors["language_projection.weight"].shape, config, files.checkpoint)
    assemble.join_attention_bias(made.tensors, config)
    assemble.interpolate_pos_embed(made.tensors, config)
    if blip is None:
        assemble.neutral_layernorm(made.tensors, config)
    if lora is not None and not keep_lora:
        assemble.merge_lora(made.tensors, scaling=lora["lora_alpha"] / lora["r"])
    try:
        needed = model_shapes(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{files.llm / 'config.json'} describes no LLaMA that can be built.") from error
    return Plan(config, _complete(made, needed, variant), made.notes)


def _open(path: Path, key: str, option: str) -> dict[str, LazyTensor]:
    """A file's tensors; refuses one that was given in place of another."""
    tensors = open_tensors(path)
    if key in tensors:
        return tensors
    marks = {
        "llama_proj.weight": "a MiniGPT-4 checkpoint (--checkpoint)",
        "query_tokens": "a Q-Former file (--qformer)",
        "blocks.0.attn.qkv.weight": "a vision tower (--vit)",
        "model.embed_tokens.weight": "an LLM (--llm)",
    }
    what = next((text for mark, text in marks.items() if mark in tensors), None)
    hint = f"it looks like {what}" if what else f"it has {len(tensors)} tensors, such as {next(iter(tensors))}"
    raise WeightsError(f"{path} can't be used for {option}: {hint}.", missing=[key])


def _block(name: str) -> int:
    """Number of the tower's block that a tensor belongs to; -1 for the others.

    The published file has one block more than the original builds, and MiniGPT-4 was trained without it.
    """
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _complete(made: _Table, needed: Mapping[str, tuple[int, ...]], variant: Variant) -> dict[str, LazyTensor]:
    """The tensors in the model's order, if they are exactly those that it needs."""
    missing, extra = needed.keys() - made.tensors.keys(), made.tensors.keys() - needed.keys()
    if missing or extra or made.strays:
        raise WeightsError(
            f"The files don't make a whole {variant} model: {len(missing)} tensors are missing, "
            f"{len(extra) + len(made.strays)} are left over.",
            missing=missing,
            unexpected=[*extra, *made.strays],
        )
    found = {name: tensor.shape for name, tensor in made.tensors.items()}
    compare_shapes(found, dict(needed), what="The set of files")
    return {name: made.tensors[name] for name in needed}


def _check_llm(made: _Table, text: LlamaConfig, llm: Path, variant: Variant) -> None:
    """Recognise the LLM folders that people take by mistake, before their answers turn out to be gibberish."""
    rows = made.tensors.get("language_model.model.embed_tokens.weight")
    norm = made.tensors.get("language_model.model.norm.weight")
    if rows is None or norm is None:
        raise WeightsError(
            f"{llm} holds no complete LLaMA.", missing=["model.embed_tokens.weight", "model.norm.weight"]
        )
    if norm.read().float().abs().mean() < _DELTA_NORM:
        raise WeightsError(
            f"{llm} holds delta weights: the difference between Vicuna and LLaMA, not Vicuna itself. Add them to the "
            "LLaMA weights first (FastChat's apply_delta), or take merged weights."
        )
    if rows.shape[0] != text.vocab_size:
        made.notes.append(
            f"config.json of the LLM speaks of {text.vocab_size} tokens, its embedding has {rows.shape[0]}."
        )
        text.vocab_size = rows.shape[0]
    if rows.shape[1] != text.hidden_size:
        raise WeightsError(
            f"{llm}/config.json says hidden size {text.hidden_size}, its embedding is {rows.shape[1]} wide."
        )
    second = text.max_position_embeddings >= 4096
    if second == (variant == "vicuna"):
        which = "Llama-2, as Vicuna v1.5 is" if second else "the first LLaMA"
        wanted = "Vicuna v0" if second else "Llama-2 chat"
        made.notes.append(
            f"The LLM's context of {text.max_position_embeddings} speaks for {which}; this wants {wanted}."
        )


def _check_variant(variant: Variant, lora: dict[str, Any] | None, checkpoint: Path) -> None:
    if lora is not None and variant != "v2":
        raise WeightsError(f"{checkpoint} holds LoRA weights, so it is a MiniGPT-v2 checkpoint: use --variant v2.")
    if lora is None and variant == "v2":
        raise WeightsError(
            f"{checkpoint} holds no LoRA weights, so it is no MiniGPT-v2 checkpoint: for MiniGPT-4 with Llama-2 use "
            "--variant llama2, with Vicuna --variant vicuna."
        )


def _check_projection(shape: tuple[int, ...], config: MiniGPT4Config, checkpoint: Path) -> None:
    """A projection tells which pair of vision and LLM it was trained for."""
    rows, columns = shape
    vision = config.vision_config.hidden_size
    hidden = config.text_config.hidden_size
    merged = vision * config.patches_per_token
    expected = merged if config.qformer_config is None else config.qformer_config.hidden_size
    if columns != expected:
        other = "--variant llama2" if columns == merged else "--variant vicuna"
        raise WeightsError(
            f"{checkpoint} projects {columns} numbers per image token, this variant makes {expected}: it belongs to "
            f"another variant, probably {other}."
        )
    if rows != hidden:
        sizes = {4096: " (7B)", 5120: " (13B)"}
        raise WeightsError(
            f"{checkpoint} was trained for an LLM of hidden size {rows}{sizes.get(rows, '')}, but --llm has "
            f"{hidden}{sizes.get(hidden, '')}: take the LLM of the same size."
        )


def _lora_config(trained: Mapping[str, LazyTensor], hyperparameters: Hyperparameters) -> dict[str, Any] | None:
    """Rank, alpha and targets of a checkpoint's LoRA; None if it has none."""
    modules: set[str] = set()
    rank = 0
    for name, tensor in trained.items():
        new = key_maps.map_key(name, key_maps.CHECKPOINT)[1] or ""
        if new.endswith(".lora_A.weight"):
            modules.add(new.split(".")[-3])
            rank = tensor.shape[0]
    if not modules:
        return None
    return {
        "r": rank,
        "lora_alpha": hyperparameters.lora_alpha or rank * _LORA_SCALING,
        "target_modules": sorted(modules),
    }
