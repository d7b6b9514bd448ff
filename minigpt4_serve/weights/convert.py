"""Converts the original MiniGPT-4 files to one Hugging Face folder. A missing or unexpected tensor aborts it.

Three steps: *plan* (read keys and shapes, map every tensor; most mistakes are detected here, within seconds), *write*
(one shard in memory at a time), *publish* (rename the finished folder).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import GenerationConfig

from minigpt4_serve import __version__
from minigpt4_serve.downloads import reject_wrong_download
from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.memory import available_memory, gib
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ImageProcessor, MiniGPT4Processor, MiniGPT4Tokenizer
from minigpt4_serve.prompt.variants import VARIANTS, Variant
from minigpt4_serve.weights.hub_code import add_hub_code
from minigpt4_serve.weights.infer_config import Hyperparameters
from minigpt4_serve.weights.load import DTYPES
from minigpt4_serve.weights.plan import Files, Plan, make_plan
from minigpt4_serve.weights.reader import sha256
from minigpt4_serve.weights.shapes import check_tensors
from minigpt4_serve.weights.writer import atomic_folder, check_target, total_bytes, write_json, write_shards

__all__ = ["Conversion", "Progress", "convert"]

_MIN_SHARD_BYTES = 16 * 2**20
_MAX_SHARD_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Progress:
    """Progress of a conversion: ``done`` of ``total`` bytes of a step; ``item`` is a file name or a tensor key."""

    step: Literal["reading", "writing"]
    item: str
    done: int
    total: int


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the folder, its configuration, and notes on unusual inputs."""

    folder: Path
    config: MiniGPT4Config
    notes: list[str]


def convert(
    *,
    variant: str,
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
        variant: a key of ``VARIANTS``.
        llm: the LLM's folder in Hugging Face layout, with safetensors files or ``.bin`` shards.
        vit: ``eva_vit_g.pth``.
        checkpoint: MiniGPT-4's own ``.pth``.
        out: the new folder; it must not exist, or be empty.
        qformer: ``blip2_pretrained_flant5xxl.pth``, for variants with a Q-Former.
        dtype: of the written tensors. The published vision encoders and LLMs are float16, so float16 preserves them
            exactly.
        keep_lora: keep LoRA weights separate instead of merging them.
        hyperparameters: values that tensor shapes don't determine, for files that differ from the published ones.
        max_shard_bytes: largest safetensors file; about as much memory is needed in addition to the mapped inputs.
            By default an eighth of the model, between 16 MiB and 2 GiB.
        on_progress: called for every chunk read and every tensor written.

    Raises:
        InvalidRequest: invalid arguments, or a folder that can't be written.
        WeightsError: wrong or damaged files, with all missing and unexpected keys, or too little disk space. No partial
            model is left.
    """
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.", param="dtype")
    if variant not in VARIANTS:
        raise InvalidRequest(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}.", param="variant")
    chosen = VARIANTS[variant]
    check_target(out)
    files = Files(llm=llm, vit=vit, checkpoint=checkpoint, qformer=qformer)
    plan = make_plan(files, chosen, keep_lora=keep_lora, hyperparameters=hyperparameters)
    config = plan.config
    processor = _make_processor(plan, llm)
    size = total_bytes(plan.tensors, DTYPES[dtype])
    shard = max_shard_bytes or min(max(size // 8, _MIN_SHARD_BYTES), _MAX_SHARD_BYTES)
    _check_memory(shard)
    with atomic_folder(out, needs=size) as folder:
        sources = _describe_inputs(files.by_role(), on_progress)
        write_shards(
            plan.tensors,
            folder,
            dtype=DTYPES[dtype],
            max_bytes=shard,
            on_bytes=lambda key, done, total: on_progress(Progress("writing", key, done, total)),
        )
        check_tensors(folder, config)
        processor.save_pretrained(folder)
        _generation_config(chosen).save_pretrained(folder)
        lora = ("kept" if keep_lora else "merged") if chosen.has_lora else "none"
        provenance = {
            "minigpt4_serve": __version__,
            "variant": variant,
            "dtype": dtype,
            "lora": lora,
            "notes": plan.notes,
            "inputs": sources,
            "outputs": {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))},
        }
        write_json(folder / "sources.json", provenance)
        config.architectures = ["MiniGPT4ForConditionalGeneration"]
        for part in (config, config.vision_config, config.qformer_config, config.text_config):
            if part is not None:
                part.dtype = DTYPES[dtype]
        config.save_pretrained(folder)
        add_hub_code(folder)
    return Conversion(out, config, plan.notes)


def _check_memory(shard: int) -> None:
    """Check that a shard fits into memory; inputs are mapped from the disk."""
    available = available_memory()
    if available is not None and shard > available:
        raise InvalidRequest(
            f"The conversion takes {gib(shard)} of memory, {gib(available)} are available: close other programs or use "
            "a larger machine."
        )


def _generation_config(variant: Variant) -> GenerationConfig:
    """The variant's sampling parameters for transformers."""
    return GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=True, **asdict(variant.generation)
    )


def _describe_inputs(
    inputs: Mapping[str, list[Path]], on_progress: Callable[[Progress], None]
) -> dict[str, list[dict[str, Any]]]:
    """Role → file names, sizes and SHA-256. Folders are left out: they may be private."""
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


def _make_processor(plan: Plan, llm: Path) -> MiniGPT4Processor:
    """Make the model's processor; adds a note to the plan if the embedding has more rows than the vocabulary."""
    path = llm / "tokenizer.model"
    rows = plan.config.text_config.vocab_size
    if not path.is_file():
        raise WeightsError(f"{llm} has no tokenizer.model (its vocabulary); download it from the LLM's model page.")
    try:
        reject_wrong_download(path)
        tokenizer = MiniGPT4Tokenizer(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or isn't LLaMA's vocabulary.") from error
    if rows < tokenizer.vocab_size:
        raise WeightsError(
            f"{path} has {tokenizer.vocab_size} tokens, but the LLM's embedding has {rows} rows: they are from two "
            "different models."
        )
    if rows > tokenizer.vocab_size:
        plan.notes.append(
            f"The LLM's embedding has {rows} rows for {tokenizer.vocab_size} tokens. Vicuna v0 has "
            "one more, for padding. Rows without a token are kept and decode to no text."
        )
    return MiniGPT4Processor(
        MiniGPT4ImageProcessor(plan.config.vision_config.image_size),
        tokenizer,
        plan.config.conversation_format,
        plan.config.num_image_tokens,
        plan.config.image_token_id,
    )
