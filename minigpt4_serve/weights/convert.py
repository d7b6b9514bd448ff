"""The original's files → one Hugging Face folder. Every tensor is mapped or dropped by table, or the run stops.

Three steps: *plan* (open the files, read names and shapes only, decide where each tensor goes; nearly every mistake
ends here, within seconds), *write* (one shard in memory at a time), *publish* (rename the finished folder).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from minigpt4_serve import __version__
from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ImageProcessor, MiniGPT4Processor, MiniGPT4Tokenizer
from minigpt4_serve.weights.infer_config import Hyperparameters, Variant
from minigpt4_serve.weights.load import check_tensors
from minigpt4_serve.weights.plan import Files, Plan, make_plan
from minigpt4_serve.weights.reader import sha256
from minigpt4_serve.weights.writer import atomic_folder, check_target, total_bytes, write_json, write_shards

__all__ = ["Conversion", "Progress", "convert"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALLEST_SHARD, _LARGEST_SHARD = 16 * 2**20, 2 * 2**30


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
    hyperparameters: Hyperparameters | None = None,
    max_shard_bytes: int | None = None,
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
        hyperparameters: dimensions that no tensor tells, for files unlike the published ones.
        max_shard_bytes: of one safetensors file, which is also what is in memory beside the mapped inputs; an eighth
            of the model if not given, but at most 2 GiB.
        on_progress: hears of every chunk read and every tensor written.

    Raises:
        InvalidRequest: arguments that can't be right, or a place that can't be written.
        WeightsError: files that aren't what they should be; names every tensor at fault. Nothing is left behind.
    """
    if dtype not in _DTYPES:
        raise InvalidRequest(f"dtype must be float32, bfloat16 or float16, not {dtype!r}.", param="dtype")
    if variant not in ("vicuna", "llama2", "v2"):
        raise InvalidRequest(f"variant must be vicuna, llama2 or v2, not {variant!r}.", param="variant")
    check_target(out)
    files = Files(llm=llm, vit=vit, checkpoint=checkpoint, qformer=qformer)
    plan = make_plan(files, variant, keep_lora=keep_lora, hyperparameters=hyperparameters)
    config = plan.config
    processor = _processor(plan, llm)
    size = total_bytes(plan.tensors, _DTYPES[dtype])
    with atomic_folder(out, needs=size) as folder:
        sources = _digest(files.by_role(), on_progress)
        write_shards(
            plan.tensors,
            folder,
            dtype=_DTYPES[dtype],
            max_bytes=max_shard_bytes or min(max(size // 8, _SMALLEST_SHARD), _LARGEST_SHARD),
            on_bytes=lambda name, done, total: on_progress(Progress("writing", name, done, total)),
        )
        check_tensors(folder, config)
        processor.save_pretrained(folder)
        generation_config(variant).save_pretrained(folder)
        lora = "none" if variant != "v2" else "kept" if keep_lora else "merged"
        about = {"minigpt4_serve": __version__, "variant": variant, "dtype": dtype, "lora": lora, "notes": plan.notes}
        written = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
        write_json(folder / "sources.json", {**about, "inputs": sources, "outputs": written})
        config.architectures = ["MiniGPT4ForConditionalGeneration"]
        for part in (config, config.vision_config, config.qformer_config, config.text_config):
            if part is not None:
                part.dtype = _DTYPES[dtype]
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


def _processor(plan: Plan, llm: Path) -> MiniGPT4Processor:
    """The LLM's vocabulary with the variant's pictures and prompts; notes when vocabulary and embedding differ."""
    path, rows = llm / "tokenizer.model", plan.config.text_config.vocab_size
    if not path.is_file():
        raise WeightsError(f"{llm} has no tokenizer.model, the vocabulary of the LLM; download it from the LLM's page.")
    try:
        tokenizer = MiniGPT4Tokenizer(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged, or not LLaMA's vocabulary.") from error
    if rows < tokenizer.vocab_size:
        raise WeightsError(f"{path} has {tokenizer.vocab_size} pieces, the LLM knows {rows}: two different models.")
    if rows > tokenizer.vocab_size:
        plan.notes.append(
            f"The LLM's embedding has {rows} rows for {tokenizer.vocab_size} pieces of text. Vicuna v0 is known for "
            "its 32001st, a padding token: it is kept, and never has a text."
        )
    return MiniGPT4Processor(
        MiniGPT4ImageProcessor(plan.config.vision_config.image_size),
        tokenizer,
        plan.config.conversation_format,
        plan.config.num_image_tokens,
        plan.config.image_token_id,
    )
