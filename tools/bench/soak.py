"""Run random arrivals, aborts and evictions on one engine for minutes, then report what it leaked.

    python -m tools.bench soak --minutes 10

Writes ``soak.json``; the exit status is 1 if KV blocks or running slots are still held at the end.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minigpt4_serve.engine import Engine
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.protocol import SamplingParams
from minigpt4_serve.settings import EngineSettings
from tools.bench.machine import add_model_options, choose_device, describe_run
from tools.bench.stages import start_engine
from tools.bench.workload import PRESETS, BenchRequest, draw_image, make_requests, random_model

__all__ = ["main", "soak"]

_ARRIVALS_PER_S = 25
_IMAGES = 24
_MEMORY_EVERY_S = 5
_ABORTED_SHARE = 0.15
_DISCONNECTED_SHARE = 0.15


def main(arguments: Sequence[str]) -> int:
    """Soak, print and write the result. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser, default_weights="tiny")
    parser.add_argument("--minutes", type=float, default=10, help="%(default)s")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's on CPUs; %(default)s")
    options = parser.parse_args(arguments)
    device, dtype = choose_device(options.device)
    torch.set_num_threads(options.threads)
    model = random_model(options.random_weights, device, dtype)
    result = soak(model, options.minutes)
    print(json.dumps(result, indent=2))
    options.out.mkdir(parents=True, exist_ok=True)
    whole = {**describe_run(model, options.random_weights), "soak": result}
    (options.out / "soak.json").write_text(json.dumps(whole, indent=2) + "\n")
    return 1 if result["leaked_blocks"] or result["leaked_slots"] else 0


def soak(model: MiniGPT4ForConditionalGeneration, minutes: float) -> dict[str, Any]:
    """Random arrivals, aborts, disconnects and beams, with caches so small that they evict and preempt."""
    engine = start_engine(model, EngineSettings(max_running=8, max_waiting=16, num_blocks=28, image_cache_bytes=2**15))
    rng = random.Random(0)
    images = [draw_image(9000 + i) for i in range(_IMAGES)]
    preset = dataclasses.replace(PRESETS["cpu"], requests=64)
    requests = [
        dataclasses.replace(one, image=rng.choice(images)) for one in make_requests(model.config, preset, seed=1)
    ]
    outcomes, memory = asyncio.run(_send_requests(engine, requests, rng, 60 * minutes))
    while engine.stats().running or engine.stats().waiting:
        time.sleep(0.01)
    stats = engine.stats()
    engine.shutdown()
    quarter = max(1, len(memory) // 4)
    return {
        "minutes": minutes,
        **{name: outcomes[name] for name in ("completed", "aborted", "disconnected", "refused")},
        "leaked_blocks": stats.blocks_held,
        "leaked_slots": stats.accepted,
        "preemptions": stats.preemptions,
        "cached_tokens": stats.cached_tokens,
        "images": len(images),
        "image_encodes": stats.image_encodes,
        "generated_tokens": stats.generated_tokens,
        "memory_mib_second_quarter": round(statistics.mean(memory[quarter : 2 * quarter] or memory), 1),
        "memory_mib_last_quarter": round(statistics.mean(memory[-quarter:]), 1),
    }


async def _send_requests(
    engine: Engine, requests: Sequence[BenchRequest], rng: random.Random, seconds: float
) -> tuple[Counter[str], list[float]]:
    """Send requests at random moments. Returns counts by outcome, and the process's memory in MiB every few seconds."""
    outcomes: Counter[str] = Counter()
    memory: list[float] = []
    end = time.monotonic() + seconds
    next_sample = 0.0

    async def send_one() -> None:
        outcomes[await _send_one(engine, rng.choice(requests), rng)] += 1

    async with asyncio.TaskGroup() as group:
        while time.monotonic() < end:
            group.create_task(send_one())
            await asyncio.sleep(rng.expovariate(_ARRIVALS_PER_S))
            if time.monotonic() > next_sample:
                next_sample = time.monotonic() + _MEMORY_EVERY_S
                memory.append(_resident_mib())
                engine.check_health()
    return outcomes, memory


async def _send_one(engine: Engine, request: BenchRequest, rng: random.Random) -> str:
    """Send a request with random parameters; some are aborted or abandoned halfway. Returns the outcome."""
    beams = rng.choice([1] * 9 + [3])
    sampling = SamplingParams(
        max_tokens=rng.randint(1, 60),
        temperature=rng.choice([0.0, 1.0]) if beams == 1 else 0.0,
        n=rng.choice([1, 1, 1, 2]),
        beams=beams,
    )
    request_id = uuid.uuid4().hex
    fate = rng.random()
    aborts = fate < _ABORTED_SHARE
    disconnects = _ABORTED_SHARE <= fate < _ABORTED_SHARE + _DISCONNECTED_SHARE
    outcome = ""
    received = 0
    generation = engine.generate(request.prompt, sampling, request_id=request_id)
    try:
        async with contextlib.aclosing(generation) as deltas:
            async for delta in deltas:
                received += 1
                if disconnects and received > 3:
                    return "disconnected"
                if aborts and received > 3:
                    engine.abort(request_id)
                if delta.usage is not None:
                    outcome = "aborted" if delta.finish_reason == "abort" else "completed"
    except MiniGPT4Error:
        return "refused"
    assert outcome, "the answer ended without its usage"
    return outcome


def _resident_mib() -> float:
    """Resident memory of this process; 0 where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    import resource

    return pages * resource.getpagesize() / 2**20
