"""Minutes of random arrivals, aborts and evictions on one engine; then what it leaked."""

import asyncio
import dataclasses
import random
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

from bench_asks import PRESETS, asks, draw
from bench_sides import start

from minigpt4_serve.engine import SamplingParams
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.settings import EngineSettings

__all__ = ["soak"]


def soak(model: MiniGPT4ForConditionalGeneration, minutes: float) -> dict[str, Any]:
    """Random arrivals, aborts, leaving callers, beams, caches that evict and preempt; then the books."""
    engine = start(model, EngineSettings(max_running=8, max_waiting=16, num_blocks=28, image_cache_bytes=2**15))
    rng = random.Random(0)
    config = model.config
    pictures = [draw(9000 + i) for i in range(24)]
    preset = dataclasses.replace(PRESETS["cpu"], requests=64)
    pool = [dataclasses.replace(ask, picture=rng.choice(pictures)) for ask in asks(config, preset, seed=1)]
    ends = {"whole": 0, "aborted": 0, "left": 0, "refused": 0}
    memory: list[float] = []
    until = time.monotonic() + 60 * minutes

    async def one() -> None:
        ask = rng.choice(pool)
        beams = rng.choice([1] * 9 + [3])
        rules = SamplingParams(
            max_tokens=rng.randint(1, 60),
            temperature=rng.choice([0.0, 1.0]) if beams == 1 else 0.0,
            n=rng.choice([1, 1, 1, 2]),
            beams=beams,
        )
        name, leaves = uuid.uuid4().hex, rng.random()
        deltas = engine.generate(ask.prompt, rules, request_id=name)
        try:
            heard = 0
            async for delta in deltas:
                heard += 1
                if leaves < 0.15 and heard > 3:
                    engine.abort(name)
                if 0.15 <= leaves < 0.3 and heard > 3:
                    ends["left"] += 1
                    return
                if delta.usage is not None:
                    ends["aborted" if delta.finish_reason == "abort" else "whole"] += 1
        except MiniGPT4Error:
            ends["refused"] += 1
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    async def crowd() -> None:
        tasks: set[asyncio.Task[None]] = set()
        sampled = 0.0
        while time.monotonic() < until:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(rng.expovariate(25))
            if time.monotonic() - sampled > 5:
                sampled = time.monotonic()
                memory.append(resident_mib())
                engine.check_health()
        await asyncio.gather(*tasks)

    asyncio.run(crowd())
    while engine.stats().running or engine.stats().waiting:
        time.sleep(0.01)
    stats = engine.stats()
    engine.shutdown()
    half = memory[len(memory) // 4 : len(memory) // 2] or memory
    return {
        "minutes": minutes,
        **ends,
        "leaked_blocks": stats.blocks_held,
        "leaked_slots": engine._load,
        "preemptions": stats.preemptions,
        "cached_tokens": stats.cached_tokens,
        "pictures": len(pictures),
        "image_encodes": stats.image_encodes,
        "generated_tokens": stats.generated_tokens,
        "memory_mib_second_quarter": round(statistics.mean(half), 1),
        "memory_mib_last_quarter": round(statistics.mean(memory[-max(1, len(memory) // 4) :]), 1),
    }


def resident_mib() -> float:
    """Memory of this process, where the system tells it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    import resource

    return pages * resource.getpagesize() / 2**20
