#!/usr/bin/env python3
"""How fast is the engine, and how much faster than the plain ways? One run measures all sides on the same weights.

    python tools/bench.py --preset cpu                      a 17M-parameter random model, one thread
    python tools/bench.py --preset gpu --random-weights 7b  full size on a GPU, with fractions of the roofline
    python tools/bench.py --soak 10                         ten minutes of random arrivals, aborts and evictions

Sides: (a) one request at a time through ``generate``, as the original answers; (b) ``generate`` on batches of eight in
order of arrival; (c) transformers' continuous batching, which reads no pictures, so that words stand in their slots;
(d) this engine. They take turns, round by round, so that a busy machine is busy for all of them alike.
It needs torch, transformers and this tree; no Ray and no FastAPI.
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
from bench_asks import PRESETS, build
from bench_report import machine_name, plot, ratios, table
from bench_roofline import device_figures, measure_machine
from bench_sides import burst, conversation, note, poisson, start
from bench_soak import soak
from transformers import __version__ as transformers_version

from minigpt4_serve.settings import EngineSettings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--random-weights", choices=["7b", "13b", "17m", "tiny"], help="the preset's own if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only soak, for so long")
    parser.add_argument("--rounds", type=int, help="of the burst; the preset's own if not given")
    parser.add_argument("--roofline", action="store_true", help="figures per batch size; always on GPUs")
    parser.add_argument("--skip-transformers", action="store_true", help="leave side (c) out; its start is slow")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for bench.json and bench.png")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Passing `repetition_penalty`")
    preset = PRESETS[given.preset]
    preset = dataclasses.replace(preset, rounds=given.rounds or preset.rounds)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if preset.threads is not None:
        torch.set_num_threads(preset.threads)
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
    settings = EngineSettings(
        max_running=preset.max_running,
        max_waiting=10_000,
        max_pieces_per_s=10**9,  # every token is told for itself: its time is measured
        cpu_threads=preset.threads,
    )
    engine = start(model, settings)
    sides = burst(model, engine, preset, with_transformers=not given.skip_transformers)
    rate, waiting = poisson(model, engine, preset)
    figures: dict[str, dict[str, float]] = {}
    if given.roofline or device.type == "cuda":
        machine = measure_machine(device, dtype)
        figures = device_figures(model, engine, machine, [b for b in (1, 32, 128) if b <= preset.max_running])
        head |= {
            "copy_gb_per_s": round(machine.bandwidth / 1e9, 1),
            "matmul_tflop_per_s": round(machine.flops / 1e12, 2),
        }
    engine.shutdown()
    turns = conversation(model, preset, settings)
    judged = ratios(sides, waiting, turns, device_is_cpu=device.type == "cpu")
    result = {
        **head,
        "ratios": judged,
        "burst": {side.name: side.summary() for side in sides},
        "poisson_requests_per_s": round(rate, 2),
        "poisson": {side.name: side.summary() for side in waiting},
        "turns_with_reuse": [side.summary() for side in turns[0]],
        "turns_without_reuse": [side.summary() for side in turns[1]],
        "roofline": figures,
    }
    print(", ".join(f"{name}: {value}" for name, value in head.items() if value is not None) + "\n")
    print(table(f"Burst: {preset.requests} requests at once, {preset.rounds} rounds", sides))
    print(table(f"Poisson: {rate:.1f} requests per second, twice what (a) can answer", waiting))
    print(table("A chat about one picture, with reuse", turns[0]))
    print(table("The same without reuse", turns[1]))
    for name, row in figures.items():
        print(f"* {name}: {row['measured']:,} of {row['limit']:,} ({row['fraction']:.0%} of the roofline)")
    for name, value in judged.items():
        print(f"* {name}: {value}")
    (given.out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(given.out / "bench.png", sides, waiting, turns, f"{head['device']}, {head['weights']}, {head['dtype']}")
    note(f"written to {given.out}/")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:  # the way through Ray Serve has a tool of its own
        tool = str(Path(__file__).with_name("bench_serve.py"))
        raise SystemExit(subprocess.run([sys.executable, tool, *sys.argv[2:]], check=False).returncode)  # noqa: S603
    raise SystemExit(main())
