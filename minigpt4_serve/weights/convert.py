"""The original's files → one Hugging Face folder. Every tensor is mapped or dropped by table, or the run stops.

Three steps: *plan* (open the files, read names and shapes only, decide where each tensor goes; nearly every mistake
ends here, within seconds), *write* (one shard in memory at a time), *publish* (rename the finished folder).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LlamaConfig

from minigpt4_serve import __version__
from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ImageProcessor, MiniGPT4Processor, MiniGPT4Tokenizer
from minigpt4_serve.weights import names
from minigpt4_serve.weights.files import Stored, llm_files, open_tensors, sha256
from minigpt4_serve.weights.geometry import Untold, Variant, build_config, read_llm_config
from minigpt4_serve.weights.load import check_tensors, compare_shapes, model_shapes
from minigpt4_serve.weights.output import atomic_folder, check_target, total_bytes, write_json, write_shards

__all__ = ["Conversion", "Progress", "convert"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LORA_SCALING = 0.25  # alpha / rank of the published model: 16 / 64


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: ``done`` of ``total`` bytes of a step."""

    step: Literal["reading", "writing"]
    item: str
    done: int
    total: int


@dataclass(frozen=True)
class Conversion:
    """What came out: the folder and remarks on the inputs that are worth reading."""

    folder: Path
    config: MiniGPT4Config
    notes: list[str]


@dataclass
class _Plan:
    """Where every tensor of the new model comes from, and what was noticed on the way."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, source: Path, tensors: Mapping[str, Stored], table: names.Table) -> None:
        """Map a file's tensors; a later file lies over an earlier one, as the original loads them."""
        for name, tensor in tensors.items():
            known, new = names.rename(name, table)
            if new is not None:
                self.tensors[new] = tensor
            elif not known:
                self.strays.append(f"{name}  ({source.name})")


def convert(
    *,
    variant: Variant,
    llm: Path,
    vit: Path,
    checkpoint: Path,
    out: Path,
    qformer: Path | None = None,
    dtype: str = "float16",
    keep_lora: bool = False,
    untold: Untold | None = None,
    max_shard_bytes: int = 2 * 2**30,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Conversion:
    """Write a model folder that ``from_pretrained`` and ``minigpt4 serve`` load.

    Args:
        variant: ``vicuna`` (7B and 13B), ``llama2`` or ``v2``.
        llm: the LLM's folder in Hugging Face layout, safetensors or ``.bin`` shards.
        vit: ``eva_vit_g.pth``.
        checkpoint: MiniGPT-4's own ``.pth``.
        out: the new folder; it must not exist, or be empty.
        qformer: ``blip2_pretrained_flant5xxl.pth``; only ``vicuna`` has one.
        dtype: of the written tensors. The published towers and LLMs are float16, so float16 keeps them bit by bit.
        keep_lora: v2 only: keep LoRA beside the LLM's weights instead of merging it into them.
        untold: dimensions that no tensor tells, for files unlike the published ones.
        max_shard_bytes: of one safetensors file; also about what is in memory at a time.
        on_progress: hears of every chunk read and every tensor written.

    Raises:
        InvalidRequest: arguments that can't be right, or a place that can't be written.
        WeightsError: files that aren't what they should be; names every tensor at fault. Nothing is left behind.
    """
    if dtype not in _DTYPES:
        raise InvalidRequest(f"dtype must be float32, bfloat16 or float16, not {dtype!r}.", param="dtype")
    if variant not in ("vicuna", "llama2", "v2"):
        raise InvalidRequest(f"variant must be vicuna, llama2 or v2, not {variant!r}.", param="variant")
    if variant == "vicuna" and qformer is None:
        raise InvalidRequest("The Vicuna variant has a Q-Former: give --qformer blip2_pretrained_flant5xxl.pth.")
    check_target(out)
    plan = _Plan()
    if qformer is not None and variant != "vicuna":
        plan.notes.append(f"{qformer.name} was not used: the {variant} variant has no Q-Former.")
        qformer = None
    untold = (untold or Untold()).completed(vit, variant)
    weight_files = llm_files(llm)
    if not (llm / "tokenizer.model").is_file():
        raise WeightsError(
            f"{llm} has no tokenizer.model, the SentencePiece vocabulary; download it from the LLM's page."
        )
    config = _plan_model(
        plan,
        variant=variant,
        llm=llm,
        weight_files=weight_files,
        vit=vit,
        qformer=qformer,
        checkpoint=checkpoint,
        keep_lora=keep_lora,
        untold=untold,
    )

    inputs = {"checkpoint": [checkpoint], "vit": [vit], "qformer": [qformer] if qformer else []}
    inputs["llm"] = [llm / "config.json", llm / "tokenizer.model", *weight_files]
    with atomic_folder(out, needs=total_bytes(plan.tensors, _DTYPES[dtype])) as folder:
        sources = _digest(inputs, on_progress)
        config.dtype = config.vision_config.dtype = config.text_config.dtype = _DTYPES[dtype]
        if config.qformer_config is not None:
            config.qformer_config.dtype = _DTYPES[dtype]
        write_shards(
            plan.tensors,
            folder,
            dtype=_DTYPES[dtype],
            max_bytes=max_shard_bytes,
            on_bytes=lambda name, done, total: on_progress(Progress("writing", name, done, total)),
        )
        check_tensors(folder, config)
        _processor(config, llm).save_pretrained(folder)
        generation_config(variant).save_pretrained(folder)
        lora = "none" if variant != "v2" else "kept" if keep_lora else "merged"
        about = {"minigpt4_serve": __version__, "variant": variant, "dtype": dtype, "lora": lora, "notes": plan.notes}
        write_json(folder / "sources.json", {**about, "inputs": sources})
        config.architectures = ["MiniGPT4ForConditionalGeneration"]
        config.save_pretrained(folder)
    return Conversion(out, config, plan.notes)


def generation_config(variant: Variant) -> GenerationConfig:
    """How the original's demo of a variant generates; v2's streams, is cooler and may say more."""
    return GenerationConfig(
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        do_sample=True,
        temperature=0.6 if variant == "v2" else 1.0,
        top_p=0.9,
        top_k=50,  # never named there, but the default of the library it was written for
        repetition_penalty=1.05,
        max_new_tokens=500 if variant == "v2" else 300,
    )


def _digest(
    inputs: Mapping[str, list[Path]], on_progress: Callable[[Progress], None]
) -> dict[str, list[dict[str, Any]]]:
    """Role → file names, sizes and SHA-256. No folders: where they lay is nobody's business."""
    total = sum(path.stat().st_size for paths in inputs.values() for path in paths)
    done = 0
    described: dict[str, list[dict[str, Any]]] = {}
    for role, paths in inputs.items():
        for path in paths:

            def advance(count: int, name: str = path.name) -> None:
                nonlocal done
                done += count
                on_progress(Progress("reading", name, done, total))

            digest = sha256(path, advance)
            described.setdefault(role, []).append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return described


def _plan_model(
    plan: _Plan,
    *,
    variant: Variant,
    llm: Path,
    weight_files: list[Path],
    vit: Path,
    qformer: Path | None,
    checkpoint: Path,
    keep_lora: bool,
    untold: Untold,
) -> MiniGPT4Config:
    """Fill the plan and prove it complete: its names and shapes are those of a model of the returned configuration."""
    trained = open_tensors(checkpoint)
    vision = open_tensors(vit)
    blip = open_tensors(qformer) if qformer else None
    _recognise(vision, vit, "cls_token", "--vit")
    _recognise(trained, checkpoint, "llama_proj.weight", "--checkpoint")
    if blip is not None and qformer is not None:
        _recognise(blip, qformer, "query_tokens", "--qformer")
    text = read_llm_config(llm)
    for path in weight_files:
        plan.add(path, open_tensors(path), names.LLM)
    _check_llm(plan, text, llm)
    lora = _lora_config(trained, untold)
    _check_variant(variant, lora, checkpoint)
    config = build_config(
        variant=variant, text=text, vision=vision, qformer=blip, lora=lora if keep_lora else None, untold=untold
    )
    plan.add(vit, _used_blocks(vision, config), names.VISION)
    if blip is not None and qformer is not None:
        plan.add(qformer, blip, names.QFORMER)
    plan.add(checkpoint, trained, names.CHECKPOINT)
    _check_projection(plan.tensors, config, checkpoint)
    _join_attention_bias(plan.tensors, config)
    _fit_positions(plan.tensors, config)
    if blip is None:
        _neutral_layernorm(plan.tensors, config)
    if lora is not None and not keep_lora:
        _merge_lora(plan.tensors, scaling=lora["lora_alpha"] / lora["r"])
    needed = model_shapes(config)
    found = {name: tensor.shape for name, tensor in plan.tensors.items()}
    missing, extra = needed.keys() - found.keys(), found.keys() - needed.keys()
    if missing or extra or plan.strays:
        raise WeightsError(
            f"The files don't make a whole {variant} model: {len(missing)} tensors are missing, "
            f"{len(extra) + len(plan.strays)} are left over.",
            missing=missing,
            unexpected=[*extra, *plan.strays],
        )
    compare_shapes(found, needed, what="The set of files")
    plan.tensors = {name: plan.tensors[name] for name in needed}
    return config


def _recognise(tensors: Mapping[str, Stored], path: Path, key: str, option: str) -> None:
    """Refuse a file that was given for another one."""
    if key in tensors:
        return
    marks = {
        "llama_proj.weight": "a MiniGPT-4 checkpoint (--checkpoint)",
        "query_tokens": "a Q-Former file (--qformer)",
        "blocks.0.attn.qkv.weight": "a vision tower (--vit)",
        "model.embed_tokens.weight": "an LLM (--llm)",
    }
    what = next((text for mark, text in marks.items() if mark in tensors), None)
    hint = f"it looks like {what}" if what else f"it has {len(tensors)} tensors, such as {next(iter(tensors))}"
    raise WeightsError(f"{path} can't be used for {option}: {hint}.", missing=[key])


def _check_llm(plan: _Plan, text: LlamaConfig, llm: Path) -> None:
    """Recognise the LLM folders that people take by mistake, before their answers turn out to be gibberish."""
    rows = plan.tensors.get("language_model.model.embed_tokens.weight")
    norm = plan.tensors.get("language_model.model.norm.weight")
    if rows is None or norm is None:
        raise WeightsError(
            f"{llm} holds no complete LLaMA.", missing=["model.embed_tokens.weight", "model.norm.weight"]
        )
    # A trained final norm is about 1 to 2.5; the difference of two fine-tunings of the same model is about 0.
    if norm.read().float().abs().mean() < 0.1:
        raise WeightsError(
            f"{llm} holds delta weights: the difference between Vicuna and LLaMA, not Vicuna itself. Add them to the "
            "LLaMA weights first (FastChat's apply_delta), or take merged weights."
        )
    if rows.shape[0] != text.vocab_size:
        plan.notes.append(
            f"config.json of the LLM speaks of {text.vocab_size} tokens, its embedding has {rows.shape[0]}."
        )
        text.vocab_size = rows.shape[0]
    if rows.shape[1] != text.hidden_size:
        raise WeightsError(
            f"{llm}/config.json says hidden size {text.hidden_size}, its embedding is {rows.shape[1]} wide."
        )


def _check_variant(variant: Variant, lora: dict[str, Any] | None, checkpoint: Path) -> None:
    if lora is not None and variant != "v2":
        raise WeightsError(f"{checkpoint} holds LoRA weights, so it is a MiniGPT-v2 checkpoint: use --variant v2.")
    if lora is None and variant == "v2":
        raise WeightsError(
            f"{checkpoint} holds no LoRA weights, so it is no MiniGPT-v2 checkpoint: for MiniGPT-4 with Llama-2 use "
            "--variant llama2, with Vicuna --variant vicuna."
        )


def _check_projection(tensors: Mapping[str, Stored], config: MiniGPT4Config, checkpoint: Path) -> None:
    """A projection tells which pair of vision and LLM it was trained for."""
    rows, columns = tensors["language_projection.weight"].shape
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


def _used_blocks(vision: Mapping[str, Stored], config: MiniGPT4Config) -> dict[str, Stored]:
    """Without the blocks past the tower's depth: the original builds one block less than its file has."""
    depth = config.vision_config.num_hidden_layers
    return {n: t for n, t in vision.items() if not n.startswith("blocks.") or int(n.split(".")[1]) < depth}


def _join_attention_bias(tensors: dict[str, Stored], config: MiniGPT4Config) -> None:
    """One bias for query, key and value; the key's is zero."""
    for layer in range(config.vision_config.num_hidden_layers):
        name = f"vision_model.encoder.layers.{layer}.self_attn.qkv.bias"
        query, value = tensors.pop(f"{name}.q", None), tensors.pop(f"{name}.v", None)
        if query is not None and value is not None:

            def joined(query: Stored = query, value: Stored = value) -> torch.Tensor:
                q, v = query.read(), value.read()
                return torch.cat([q, torch.zeros_like(q), v])

            tensors[name] = Stored((query.shape[0] * 3,), joined)


def _fit_positions(tensors: dict[str, Stored], config: MiniGPT4Config) -> None:
    """Stretch the learned positions to the grid that the variant looks at, as the original does when it loads them."""
    name = "vision_model.embeddings.position_embedding"
    vision = config.vision_config
    old, side = tensors[name], vision.image_size // vision.patch_size
    before = round((old.shape[1] - 1) ** 0.5)
    if before == side:
        return

    def resized() -> torch.Tensor:
        positions = old.read().float()  # [1, 1 + before², width]; the first is the class token's
        grid = positions[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    tensors[name] = Stored((1, 1 + side * side, old.shape[2]), resized)


def _neutral_layernorm(tensors: dict[str, Stored], config: MiniGPT4Config) -> None:
    """Without a Q-Former the original never loads ln_vision: weight 1, bias 0, unless the checkpoint has trained it."""
    width = config.vision_config.hidden_size
    name = "vision_model.post_layernorm"
    tensors.setdefault(f"{name}.weight", Stored((width,), lambda: torch.ones(width)))
    tensors.setdefault(f"{name}.bias", Stored((width,), lambda: torch.zeros(width)))


def _lora_config(trained: Mapping[str, Stored], untold: Untold) -> dict[str, Any] | None:
    """Rank, alpha and targets of a checkpoint's LoRA; None if it has none."""
    modules: set[str] = set()
    rank = 0
    for name, tensor in trained.items():
        new = names.rename(name, names.CHECKPOINT)[1] or ""
        if new.endswith(".lora_A.weight"):
            modules.add(new.split(".")[-3])
            rank = tensor.shape[0]
    if not modules:
        return None
    return {"r": rank, "lora_alpha": untold.lora_alpha or rank * _LORA_SCALING, "target_modules": sorted(modules)}


def _merge_lora(tensors: dict[str, Stored], *, scaling: float) -> None:
    """W + scaling · B A for every layer that has both; halves without the other stay and are named as left over."""
    for a_name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        stem = a_name.removesuffix(".lora_A.weight")
        b_name, w_name = f"{stem}.lora_B.weight", f"{stem}.weight"
        if b_name not in tensors or w_name not in tensors:
            continue
        a, b, weight = tensors.pop(a_name), tensors.pop(b_name), tensors[w_name]

        def merged(weight: Stored = weight, a: Stored = a, b: Stored = b) -> torch.Tensor:
            return weight.read().float() + scaling * (b.read().float() @ a.read().float())

        tensors[w_name] = Stored(weight.shape, merged)


def _processor(config: MiniGPT4Config, llm: Path) -> MiniGPT4Processor:
    try:
        tokenizer = MiniGPT4Tokenizer(str(llm / "tokenizer.model"))
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{llm / 'tokenizer.model'} is damaged, or not LLaMA's vocabulary.") from error
    side = config.vision_config.image_size
    return MiniGPT4Processor(
        MiniGPT4ImageProcessor(side),
        tokenizer,
        config.conversation_format,
        config.num_image_tokens,
        config.image_token_id,
    )
