#!/usr/bin/env python3
"""How fast is the engine, and how much faster than the plain ways? One run measures all sides on the same weights.

    python tools/bench.py --preset cpu                      a 17M-parameter random model, one thread
    python tools/bench.py --preset gpu --random-weights 7b  full size on a GPU, with fractions of the roofline
    python tools/bench.py --soak 10 --random-weights tiny   ten minutes of random arrivals, aborts and evictions

Sides: (a) one request at a time through ``generate``, as the original answers; (b) ``generate`` on batches of eight in
order of arrival; (c) transformers' continuous batching, which reads no pictures, so that words stand in their slots;
(d) this engine. They take turns, round by round, so that a busy machine is busy for all of them alike.
It needs this tree and what the extra ``model`` installs; no Ray and no FastAPI. With matplotlib it draws a plot, too.
"""

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bench_asks import PRESETS, Preset, build, cache_bytes
from bench_report import machine_name, plot, ratios, table
from bench_roofline import Machine, device_figures, measure_machine
from bench_sides import burst, conversation, note, poisson, start
from bench_soak import soak
from transformers import __version__ as transformers_version

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.settings import EngineSettings


def main(arguments: Sequence[str] | None = None) -> int:
    given = options().parse_args(arguments)
    warnings.filterwarnings("ignore", message="Passing `repetition_penalty`")
    preset = PRESETS[given.preset]
    preset = dataclasses.replace(preset, rounds=given.rounds or preset.rounds)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if preset.threads is not None:
        torch.set_num_threads(preset.threads)
    machine: Machine | None = None
    if given.soak is None and (given.roofline or device.type == "cuda"):
        machine = measure_machine(device, dtype)  # while nothing else takes the device's memory
    weights = given.random_weights or preset.weights
    model = build(weights, device, dtype)
    parameters = sum(p.numel() for p in model.parameters())
    given.out.mkdir(parents=True, exist_ok=True)
    head = {
        "date": datetime.date.today().isoformat(),
        "device": machine_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": f"random, {weights}, {parameters / 1e6:,.1f} million parameters",
        "torch": torch.__version__,
        "transformers": transformers_version,
        "preset": given.preset,
    }
    if given.soak is not None:
        result: dict[str, Any] = {**head, "soak": soak(model, given.soak)}
        print(json.dumps(result["soak"], indent=2))
        (given.out / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
        return int(result["soak"]["leaked_blocks"] > 0 or result["soak"]["leaked_slots"] > 0)
    compare(model, preset, head, machine, given.out, with_transformers=not given.skip_transformers)
    note(f"written to {given.out}/")
    return 0


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--random-weights", choices=["7b", "13b", "17m", "tiny"], help="the preset's own if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only soak, for so long")
    parser.add_argument("--rounds", type=int, help="of the burst; the preset's own if not given")
    parser.add_argument("--roofline", action="store_true", help="figures per batch size; always on GPUs")
    parser.add_argument("--skip-transformers", action="store_true", help="leave side (c) out; its start is slow")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for bench.json and bench.png")
    return parser


def compare(
    model: MiniGPT4ForConditionalGeneration,
    preset: Preset,
    head: dict[str, Any],
    machine: Machine | None,
    out: Path,
    *,
    with_transformers: bool,
) -> None:
    """All sides, stage by stage; tables and a plot at the end. One engine at a time: each fills the device's memory."""
    if machine is not None:
        head = {
            **head,
            "copy_gb_per_s": round(machine.bandwidth / 1e9, 1),
            "matmul_tflop_per_s": round(machine.flops / 1e12, 2),
        }
    result = dict(head)

    def keep(**found: Any) -> None:
        """Written after each stage: what fails later takes nothing with it."""
        result.update(found)
        (out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")

    settings = EngineSettings(
        max_running=preset.max_running,
        max_waiting=10_000,
        max_pieces_per_s=10**9,  # every token is told for itself: its time is measured
        kv_cache_bytes=cache_bytes(model, preset),
        cpu_threads=preset.threads,
    )
    keep()
    engine = start(model, settings)
    sides = burst(model, engine, preset, with_transformers=with_transformers)
    keep(burst={side.name: side.summary() for side in sides})
    rate, waiting = poisson(model, engine, preset)
    keep(poisson_requests_per_s=round(rate, 2), poisson={side.name: side.summary() for side in waiting})
    figures: dict[str, dict[str, float]] = {}
    if machine is not None:
        figures = device_figures(model, engine, machine, [b for b in (1, 32, 128) if b <= preset.max_running])
    keep(roofline=figures)
    engine.shutdown()
    del engine
    turns = conversation(model, preset, settings)
    judged = ratios(sides, waiting, turns, device_is_cpu=model.device.type == "cpu")
    with_reuse, without = ([side.summary() for side in line] for line in turns)
    keep(turns_with_reuse=with_reuse, turns_without_reuse=without, ratios=judged)
    print(", ".join(f"{name}: {value}" for name, value in head.items() if value is not None) + "\n")
    print(table(f"Burst: {preset.requests} requests at once, {preset.rounds} rounds", sides))
    print(table(f"Poisson: {rate:.1f} requests per second, twice what (a) can answer", waiting))
    print(table("A chat about one picture, with reuse", turns[0]))
    print(table("The same without reuse", turns[1]))
    for name, row in figures.items():
        print(f"* {name}: {row['measured']:,} of {row['limit']:,} ({row['fraction']:.0%} of the roofline)")
    for name, value in judged.items():
        print(f"* {name}: {value}")
    try:
        plot(out / "bench.png", sides, waiting, turns, f"{head['device']}, {head['weights']}, {head['dtype']}")
    except ModuleNotFoundError:
        note("no bench.png: install matplotlib to get one")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:  # the way through Ray Serve has a tool of its own
        tool = str(Path(__file__).with_name("bench_serve.py"))
        raise SystemExit(subprocess.run([sys.executable, tool, *sys.argv[2:]], check=False).returncode)  # noqa: S603
    raise SystemExit(main())
