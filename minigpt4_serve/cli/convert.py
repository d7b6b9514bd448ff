"""``minigpt4 convert``: published checkpoints → one model folder."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt4_serve.cli.console import show_bytes
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.prompt.variants import VARIANTS

__all__ = ["convert"]


def convert(
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", show_default=False, help="The folder to make.")],
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The model: {', '.join(VARIANTS)}.", show_default=False)
    ] = None,
    llm: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The LLM's folder in Hugging Face layout.", show_default=False)
    ] = None,
    vit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The vision encoder, eva_vit_g.pth.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="MiniGPT-4's own .pth file.", show_default=False)
    ] = None,
    qformer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The Q-Former, blip2_pretrained_flant5xxl.pth (vicuna only).")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of the weights: float32, bfloat16 or float16.")
    ] = "float16",
    keep_lora: Annotated[bool, typer.Option("--keep-lora", help="Keep LoRA beside the weights (v2 only).")] = False,
    from_hub: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fetch what is public of vicuna-7b, vicuna-13b, llama2-7b or v2-7b."),
    ] = None,
    parts: Annotated[Path, typer.Option(metavar="DIR", help="Where --from-hub keeps the parts.")] = Path("parts"),
    vit_heads: Annotated[
        int | None, typer.Option(metavar="N", help="Attention heads of the vision encoder, for unpublished sizes.")
    ] = None,
    vit_depth: Annotated[
        int | None, typer.Option(metavar="N", help="Blocks of the vision encoder that are used, likewise.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", help="Width and height of images in pixels, likewise.")
    ] = None,
    qformer_heads: Annotated[
        int | None, typer.Option(metavar="N", help="Attention heads of the Q-Former, likewise.")
    ] = None,
    lora_alpha: Annotated[float | None, typer.Option(metavar="NUMBER", help="Scale of LoRA, likewise.")] = None,
) -> None:
    """Convert published checkpoints.

    The result is one folder that `serve` and transformers load.

    Example: minigpt4 convert models/minigpt4-7b --from-hub vicuna-7b
    """
    from minigpt4_serve.serving_memory import check_memory
    from minigpt4_serve.settings import ModelSettings
    from minigpt4_serve.weights.convert import convert as convert_files
    from minigpt4_serve.weights.infer_config import Hyperparameters

    given = {"llm": llm, "vit": vit, "checkpoint": checkpoint, "qformer": qformer}
    paths = {role: path for role, path in given.items() if path is not None}
    if from_hub is not None:
        if variant is not None:
            raise InvalidRequest("--from-hub NAME sets the variant; leave --variant out.")
        variant, paths = _fetch_parts(from_hub, parts, paths)
    absent = [f"--{role}" for role in ("llm", "vit", "checkpoint") if role not in paths]
    if variant is None:
        absent.insert(0, "--variant")
    if absent:
        raise InvalidRequest(f"Give {', '.join(absent)}, or --from-hub NAME.")
    conversion = convert_files(
        variant=variant,  # type: ignore[arg-type]  # checked there
        **paths,  # type: ignore[arg-type]
        out=out,
        dtype=dtype,
        keep_lora=keep_lora,
        hyperparameters=Hyperparameters(
            vit_heads=vit_heads,
            vit_depth=vit_depth,
            image_size=image_size,
            qformer_heads=qformer_heads,
            lora_alpha=lora_alpha,
        ),
        on_progress=lambda progress: show_bytes(f"{progress.step} {progress.item}", progress.done, progress.total),
    )
    for note in conversion.notes:
        typer.echo(f"Note: {note}", err=True)
    try:
        check_memory(ModelSettings(path=out))
    except InvalidRequest as error:
        typer.echo(f"Note: on this machine it can't be served with default settings. {error.message}", err=True)
    typer.echo(f"{out} is ready. Serve it: minigpt4 serve --model {out}")


def _fetch_parts(name: str, into: Path, given: dict[str, Path]) -> tuple[str, dict[str, Path]]:
    """(variant, role → path).

    Raises:
        InvalidRequest: a part can't be fetched; with the reasons.
    """
    from minigpt4_serve.weights.hub import fetch

    fetched = fetch(name, into, given=given, on_progress=show_bytes)
    if fetched.missing:
        reasons = "\n".join(f"  --{role}: {reason}" for role, reason in fetched.missing.items())
        raise InvalidRequest(f"What is public of {name} lies in {into}. Still missing:\n{reasons}")
    return fetched.variant, fetched.paths
