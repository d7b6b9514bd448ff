"""Compare the engine with plain ways to answer, all on the same weights in the same run.

    python -m tools.bench --preset cpu                      17 million random parameters, one thread
    python -m tools.bench --preset gpu --random-weights 7b  full size on a GPU, with fractions of the roofline

(a) one request at a time through ``generate``, like the original code; (b) ``generate`` on batches of eight in order
of arrival; (c) transformers' continuous batching, which takes no images, so words stand in the image slots; (d) this
engine. They take turns, round by round, so that other programs on the machine slow all of them down alike.
It needs a checkout and what the extra ``model`` installs; no Ray and no FastAPI. With matplotlib it draws a plot.

Other benchmarks: ``python -m tools.bench soak``, ``python -m tools.bench serve``; each has a ``--help``.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.settings import EngineSettings
from tools.bench.machine import Machine, add_model_options, choose_device, describe_run, measure_machine
from tools.bench.measurement import log_progress
from tools.bench.report import plot, ratios, table
from tools.bench.roofline import device_figures
from tools.bench.stages import burst, conversation, poisson, start_engine
from tools.bench.workload import PRESETS, Preset, kv_cache_bytes, random_model

__all__ = ["main"]

_ROOFLINE_BATCHES = (1, 32, 128)


def main(arguments: Sequence[str]) -> int:
    """Measure, print tables, write ``bench.json`` and ``bench.png``. Returns the exit status."""
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", message="Passing `repetition_penalty`")
    preset = PRESETS[options.preset]
    preset = dataclasses.replace(preset, rounds=options.rounds or preset.rounds)
    device, dtype = choose_device(options.device)
    if preset.threads is not None:
        torch.set_num_threads(preset.threads)
    machine: Machine | None = None
    if options.roofline or device.type == "cuda":
        machine = measure_machine(device, dtype)  # while nothing else takes the device's memory
    weights = options.random_weights or preset.weights
    model = random_model(weights, device, dtype)
    header = {**describe_run(model, weights), "preset": options.preset}
    options.out.mkdir(parents=True, exist_ok=True)
    compare(model, preset, header, machine, options.out, with_transformers=not options.skip_transformers)
    log_progress(f"written to {options.out}/")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    add_model_options(parser)
    parser.add_argument("--rounds", type=int, help="of the burst; the preset's if not given")
    parser.add_argument("--roofline", action="store_true", help="figures per batch size; always on GPUs")
    parser.add_argument("--skip-transformers", action="store_true", help="leave (c) out; its start is slow")
    return parser


def compare(
    model: MiniGPT4ForConditionalGeneration,
    preset: Preset,
    header: dict[str, Any],
    machine: Machine | None,
    out: Path,
    *,
    with_transformers: bool,
) -> None:
    """All stages, then tables and a plot. One engine at a time: each fills the device's memory."""
    if machine is not None:
        header = {
            **header,
            "copy_gb_per_s": round(machine.bandwidth / 1e9, 1),
            "matmul_tflop_per_s": round(machine.flops / 1e12, 2),
        }
    result = dict(header)

    def save(**stage: Any) -> None:
        """Written after each stage: a later failure loses nothing."""
        result.update(stage)
        (out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")

    settings = EngineSettings(
        max_running=preset.max_running,
        max_waiting=10_000,
        max_pieces_per_s=10**9,  # a delta per token, so that each token's time is measured
        kv_cache_bytes=kv_cache_bytes(model, preset),
        cpu_threads=preset.threads,
    )
    save()
    engine = start_engine(model, settings)
    in_burst = burst(model, engine, preset, with_transformers=with_transformers)
    save(burst={one.name: one.summary() for one in in_burst})
    rate, in_poisson = poisson(model, engine, preset)
    save(poisson_requests_per_s=round(rate, 2), poisson={one.name: one.summary() for one in in_poisson})
    figures: dict[str, dict[str, float]] = {}
    if machine is not None:
        batches = [batch for batch in _ROOFLINE_BATCHES if batch <= preset.max_running]
        figures = device_figures(model, engine, machine, batches)
    save(roofline=figures)
    engine.shutdown()
    del engine
    turns = conversation(model, preset, settings)
    compared = ratios(in_burst, in_poisson, turns, with_cpu_time=model.device.type == "cpu")
    with_reuse, without_reuse = ([turn.summary() for turn in one] for one in turns)
    save(turns_with_reuse=with_reuse, turns_without_reuse=without_reuse, ratios=compared)
    print(", ".join(f"{name}: {value}" for name, value in header.items() if value is not None) + "\n")
    print(table(f"Burst: {preset.requests} requests at once, {preset.rounds} rounds", in_burst))
    print(table(f"Poisson: {rate:.1f} requests per second, twice what (a) can answer", in_poisson))
    print(table("A chat about one picture, with reuse", turns[0]))
    print(table("The same without reuse", turns[1]))
    for name, row in figures.items():
        print(f"* {name}: {row['measured']:,} of {row['limit']:,} ({row['fraction']:.0%} of the roofline)")
    for name, value in compared.items():
        print(f"* {name}: {value}")
    try:
        plot(
            out / "bench.png",
            in_burst,
            in_poisson,
            turns,
            f"{header['device']}, {header['weights']}, {header['dtype']}",
        )
    except ModuleNotFoundError:
        log_progress("no bench.png: install matplotlib to get one")
