"""``minigpt4 doctor``: a report about this machine and a model."""

from typing import Annotated

import typer

from minigpt4_serve.cli.options import ModelOption
from minigpt4_serve.settings import TINY_MODEL

__all__ = ["doctor"]

_MARKS = {"ok": "✓", "note": "·", "problem": "✗"}


def doctor(
    model: ModelOption = TINY_MODEL,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where the model runs: auto, cpu, cuda, cuda:1 and so on.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Of the weights: auto (bfloat16 on GPUs, float32 on CPUs), float32, bfloat16 or float16.",
        ),
    ] = "auto",
) -> None:
    """Check this machine and a model.

    Reports versions, devices, memory and digests, and asks a question whose answer is known.
    """
    from minigpt4_serve.server.local_engine import loading
    from minigpt4_serve.settings import ModelSettings
    from minigpt4_serve.settings_file import validate_settings

    settings = validate_settings(ModelSettings, {"path": model, "device": device, "dtype": dtype}, None)
    with loading():
        from minigpt4_serve.cli.diagnosis import examine, memory_table
    healthy = True
    for finding in examine(settings):
        healthy = healthy and finding.state != "problem"
        typer.echo(f"{_MARKS[finding.state]} {finding.topic:<18} {finding.text}")
    typer.echo("\nWhat the published models take:")
    for row in memory_table():
        typer.echo("  {:<11} {:<9} {:>9}  {:>19}  {}".format(*row))
    if not healthy:
        raise SystemExit(1)
