"""The machine that a benchmark runs on: its device, its name, and the bandwidth and arithmetic that it reaches."""

import argparse
import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import __version__ as transformers_version

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from tools.bench.workload import WEIGHTS

__all__ = ["Machine", "add_model_options", "choose_device", "describe_run", "machine_name", "measure_machine"]


def add_model_options(parser: argparse.ArgumentParser, default_weights: str | None = None) -> None:
    """Options that all benchmarks of the engine share."""
    shown = default_weights or "the preset's"
    parser.add_argument("--random-weights", choices=WEIGHTS, default=default_weights, help=f"model size; {shown}")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results; %(default)s")


def choose_device(name: str) -> tuple[torch.device, torch.dtype]:
    """The named device (``auto``: the GPU if there is one) and the dtype that is used there."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    return device, torch.float32 if device.type == "cpu" else torch.bfloat16


def machine_name(device: torch.device) -> str:
    """Name of the GPU or CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_run(model: MiniGPT4ForConditionalGeneration, weights: str) -> dict[str, Any]:
    """The context that makes results comparable: date, device, dtype, weights and versions."""
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "date": datetime.date.today().isoformat(),
        "device": machine_name(model.device),
        "threads": torch.get_num_threads() if model.device.type == "cpu" else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": f"random, {weights}, {parameters / 1e6:,.1f} million parameters",
        "torch": torch.__version__,
        "transformers": transformers_version,
    }


@dataclass(frozen=True)
class Machine:
    """The device's measured peak rates.

    Attributes:
        bandwidth: bytes per second of a large copy, read and write counted.
        flops: operations per second of a large matrix product.
    """

    bandwidth: float
    flops: float


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a large copy and a large matrix product; the best of several."""
    large = device.type == "cuda"
    source = torch.zeros((2**32 if large else 2**27) // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    size = 8192 if large else 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    copy_seconds = best_seconds(lambda: target.copy_(source), device, repeats=7)
    product_seconds = best_seconds(lambda: matrix @ matrix, device, repeats=7)
    return Machine(2 * source.nbytes / copy_seconds, 2 * size**3 / product_seconds)


def best_seconds(run: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """The shortest of several runs, each until the device has finished it."""
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
