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
import asyncio
import dataclasses
import datetime
import io
import itertools
import json
import platform
import random
import statistics
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image, ImageDraw
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig, StoppingCriteria, StoppingCriteriaList
from transformers import __version__ as transformers_version

from minigpt4_serve.engine import Engine, EngineStats, Prompt, SamplingParams
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from minigpt4_serve.pictures import ImageLimits, Picture, check_picture, decode_picture
from minigpt4_serve.settings import EngineSettings
from minigpt4_serve.weights.memory import published_config

STATIC_BATCH = 8


@dataclass(frozen=True)
class Preset:
    """How much is asked."""

    weights: str
    requests: int
    rounds: int
    answer: tuple[int, int]
    turns: int
    max_running: int
    threads: int | None = None


PRESETS = {
    "cpu": Preset("17m", requests=32, rounds=2, answer=(8, 64), turns=8, max_running=32, threads=1),
    "gpu": Preset("7b", requests=64, rounds=2, answer=(16, 128), turns=8, max_running=128),
    "smoke": Preset("tiny", requests=4, rounds=1, answer=(2, 6), turns=2, max_running=4, threads=1),
}


# The model and what is asked of it.


def config_of(weights: str) -> MiniGPT4Config:
    """Shapes of the published 7b and 13b, of a 17-million-parameter model, or of a toy."""
    if weights in ("7b", "13b"):
        return published_config(f"vicuna-{weights}")
    hidden, layers, vocabulary, side = {"17m": (384, 6, 8000, 224), "tiny": (32, 2, 512, 28)}[weights]
    small: dict[str, Any] = {"hidden_size": hidden // 2, "num_attention_heads": 4, "intermediate_size": hidden}
    return MiniGPT4Config(
        vision_config=Blip2VisionConfig(**small, num_hidden_layers=4, image_size=side, initializer_range=0.02),
        qformer_config=Blip2QFormerConfig(**small, num_hidden_layers=2, hidden_dropout_prob=0.0),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32 * 2 if hidden > 32 else 4,
            max_position_embeddings=2048,
            initializer_range=0.1,
        ),
        num_query_tokens=32,
    )


def build(weights: str, device: torch.device, dtype: torch.dtype) -> MiniGPT4ForConditionalGeneration:
    """A random model, made where it is to run: 7B parameters never exist on the host."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MiniGPT4ForConditionalGeneration(config_of(weights))
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


class Words:
    """A vocabulary without a file: an id's text is its number."""

    eos_token_id = 2

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode_ids(self, ids: Sequence[int]) -> str:
        return "".join(f" {token}" for token in ids)


@dataclass(frozen=True)
class Ask:
    """A request: a picture and words, and how long the answer shall be."""

    ids: tuple[int, ...]
    picture: Picture
    tokens: int

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.ids, (self.picture,))

    @property
    def rules(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.tokens, ignore_eos=True)


def draw(seed: int) -> Picture:
    """A picture unlike all others."""
    rng = random.Random(seed)
    image = Image.new("RGB", (320, 240), (seed % 251, seed * 7 % 251, seed * 13 % 251))
    canvas = ImageDraw.Draw(image)
    for _ in range(20):
        x, y = rng.randrange(280), rng.randrange(200)
        canvas.ellipse((x, y, x + 40, y + 40), fill=tuple(rng.randrange(256) for _ in range(3)))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return check_picture(file.getvalue(), ImageLimits())


def asks(config: MiniGPT4Config, preset: Preset, seed: int) -> list[Ask]:
    """A common beginning, a picture of its own, and a question of 8–24 tokens each."""
    rng = random.Random(seed)
    vocabulary = config.get_text_config().vocab_size
    system = [1, *(random.Random(0).randrange(3, vocabulary) for _ in range(40))]
    slots = [config.image_token_id] * config.num_image_tokens
    return [
        Ask(
            (*system, *slots, *(rng.randrange(3, vocabulary) for _ in range(rng.randint(8, 24)))),
            draw(seed * 1000 + i),
            rng.randint(*preset.answer),
        )
        for i in range(preset.requests)
    ]


# What was measured.


@dataclass
class Side:
    """One way to answer. Seconds per request count from its arrival."""

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the whole process: steadier than the wall where others use the cores, too
    tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    prefill_tokens: int = 0
    cached_tokens: int = 0
    image_hits: int = 0
    decode_steps: int = 0
    missing: str | None = None

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def hear(self, arrived: float, times: Sequence[float]) -> None:
        """An answer whose tokens came at these times."""
        if times:
            self.ttft.append(times[0] - arrived)
            self.itl += [after - before for before, after in itertools.pairwise(times)]

    def count(self, before: EngineStats, after: EngineStats) -> None:
        for name in ("prefill_tokens", "cached_tokens", "image_hits", "decode_steps"):
            setattr(self, name, getattr(self, name) + getattr(after, name) - getattr(before, name))

    def summary(self) -> dict[str, Any]:
        if self.missing is not None:
            return {"not_available": self.missing}
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("ttft", "itl"):
            values = plain.pop(name)
            plain |= {f"{name}_p{p}_ms": round(1000 * percentile(values, p), 2) for p in (50, 95, 99)}
        del plain["name"], plain["missing"]
        return {"tokens_per_s": round(self.rate, 1), **plain, "seconds": round(self.seconds, 3)}


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each step of ``generate`` is done; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


# The four sides.


def generate_batch(
    model: MiniGPT4ForConditionalGeneration, side: Side, batch: list[Ask], arrived: float
) -> list[float]:
    """One call of ``generate``, padded on the left; returns when each step was done."""
    to_tensor = MiniGPT4ImageProcessor(model.config.vision_config.image_size).to_tensor
    device = model.device
    pixels = torch.stack([to_tensor(decode_picture(ask.picture.data)) for ask in batch]).to(device, model.dtype)
    longest = max(len(ask.ids) for ask in batch)
    rows = [[0] * (longest - len(ask.ids)) + list(ask.ids) for ask in batch]
    mask = [[0] * (longest - len(ask.ids)) + [1] * len(ask.ids) for ask in batch]
    most = max(ask.tokens for ask in batch)
    clock = Clock()
    model.generate(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(mask, device=device),
        pixel_values=pixels,
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    for ask in batch:
        side.hear(arrived, clock.times[: ask.tokens])
    side.tokens += sum(ask.tokens for ask in batch)
    side.prefill_tokens += sum(len(ask.ids) for ask in batch)
    side.decode_steps += most
    return clock.times


def by_generate(model: MiniGPT4ForConditionalGeneration, side: Side, todo: list[Ask], size: int) -> None:
    """(a) with batches of one, (b) with larger ones: all arrive at once and are answered in their order."""
    arrived = time.perf_counter()
    for at in range(0, len(todo), size):
        generate_batch(model, side, todo[at : at + size], arrived)
    side.seconds += time.perf_counter() - arrived


class TransformersEngine:
    """(c) A word in every image slot: that engine takes ids only. Its vision costs nothing, which is in its favour."""

    def __init__(self, model: MiniGPT4ForConditionalGeneration) -> None:
        self._model = model
        self._manager: Any = None
        self._count = 0

    def run(self, side: Side, todo: list[Ask]) -> None:
        """Raises whatever it raises: not every version runs every model on every device."""
        if self._manager is None:  # once: making its cache takes longer than all the answers
            from transformers import ContinuousBatchingConfig, GenerationConfig

            rules = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
            sizes = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=1024)
            llm = self._model.language_model
            self._manager = llm.init_continuous_batching(rules, sizes)
            self._manager.start()
        started = time.perf_counter()
        waiting: set[str] = set()
        for ask in todo:
            ids = [5 if token == self._model.config.image_token_id else token for token in ask.ids]
            self._count += 1
            waiting.add(f"r{self._count}")
            self._manager.add_request(ids, request_id=f"r{self._count}", max_new_tokens=ask.tokens)
        while waiting:
            result = self._manager.get_result(timeout=120)
            if result is None:
                raise RuntimeError("it stopped before all requests were answered")
            if result.is_finished() and result.request_id in waiting:
                waiting.discard(result.request_id)
                if result.error is not None:
                    raise RuntimeError(result.error)
                side.tokens += len(result.generated_tokens)
        side.seconds += time.perf_counter() - started
        side.prefill_tokens += sum(len(ask.ids) for ask in todo)

    def close(self) -> None:
        if self._manager is not None:
            self._manager.stop(block=True)


async def by_engine(engine: Engine, side: Side, todo: list[Ask], arrivals: Sequence[float]) -> None:
    """(d) Each request arrives at its second."""
    before, started = engine.stats(), time.perf_counter()

    async def one(ask: Ask, after: float) -> None:
        await asyncio.sleep(max(0.0, started + after - time.perf_counter()))
        times: list[float] = []
        async for delta in engine.generate(ask.prompt, ask.rules, request_id=uuid.uuid4().hex):
            times += [time.perf_counter()] * len(delta.token_ids)
        side.hear(started + after, times)
        side.tokens += len(times)

    await asyncio.gather(*(one(ask, after) for ask, after in zip(todo, arrivals, strict=True)))
    side.seconds += time.perf_counter() - started
    side.count(before, engine.stats())


def burst(
    model: MiniGPT4ForConditionalGeneration, engine: Engine, preset: Preset, *, with_transformers: bool
) -> list[Side]:
    """All requests at once, on all sides, round by round."""
    sides = [
        Side("(a) one at a time"),
        Side(f"(b) static batches of {STATIC_BATCH}"),
        Side("(c) transformers' continuous batching"),
        Side("(d) this engine"),
    ]
    if not with_transformers:
        sides[2].missing = "left out"
    other = TransformersEngine(model)
    runs: list[Callable[[Side, list[Ask]], None]] = [
        lambda side, todo: by_generate(model, side, todo, 1),
        lambda side, todo: by_generate(model, side, todo, STATIC_BATCH),
        other.run,
        lambda side, todo: asyncio.run(by_engine(engine, side, todo, [0.0] * len(todo))),
    ]
    for number in range(preset.rounds + 1):
        todo = asks(model.config, preset, seed=number)
        for i, (side, run) in enumerate(zip(sides, runs, strict=True)):
            if side.missing is not None:
                continue
            measured = side if number else Side(side.name)  # the first round only warms up
            began = time.process_time()
            try:
                run(measured, todo if number else todo[:STATIC_BATCH])
                measured.cpu_seconds += time.process_time() - began
            except Exception as error:
                if i != 2:
                    raise
                side.missing = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            note(f"burst, round {number}: {side.name}")
    other.close()
    return sides


def poisson(model: MiniGPT4ForConditionalGeneration, engine: Engine, preset: Preset) -> tuple[float, list[Side]]:
    """Arrivals twice as fast as (a) can answer: (rate per second, sides).

    (a) answers alone, so its line is exact arithmetic on measured answers: each begins when the one before is done.
    """
    plain, ours = Side("(a) one at a time"), Side("(d) this engine")
    todo = asks(model.config, preset, seed=77)
    took: list[tuple[float, list[float]]] = []
    for ask in todo:
        began = time.perf_counter()
        times = generate_batch(model, Side("alone"), [ask], began)
        took.append((time.perf_counter() - began, [at - began for at in times]))
    rate = 2 / statistics.mean(seconds for seconds, _ in took)
    rng, now, arrivals = random.Random(7), 0.0, []
    for _ in todo:
        now += rng.expovariate(rate)
        arrivals.append(now)
    free = 0.0
    for arrived, (seconds, times), ask in zip(arrivals, took, todo, strict=True):
        begin = max(free, arrived)
        free = begin + seconds
        plain.hear(arrived, [begin + at for at in times])
        plain.tokens += ask.tokens
        plain.prefill_tokens += len(ask.ids)
        plain.decode_steps += ask.tokens
    plain.seconds = free
    asyncio.run(by_engine(engine, ours, todo, arrivals))
    note("Poisson arrivals")
    return rate, [plain, ours]


def conversation(model: MiniGPT4ForConditionalGeneration, preset: Preset, settings: EngineSettings) -> list[list[Side]]:
    """One chat of several turns on one picture, each turn a Side: with reuse, and on engines that know nothing yet."""
    both: list[list[Side]] = [[], []]
    for sides, fresh in zip(both, (False, True), strict=True):
        engine = start(model, settings)
        ask = asks(model.config, preset, seed=5)[0]
        rng = random.Random(9)
        for turn in range(preset.turns):
            if fresh and turn:
                engine.shutdown()
                engine = start(model, settings)
            if fresh:  # what is made lazily is made before
                other = asks(model.config, preset, seed=900)[0]
                other = dataclasses.replace(other, ids=tuple(reversed(other.ids)))
                asyncio.run(by_engine(engine, Side("warm"), [other], [0.0]))
            side = Side(f"turn {turn + 1}")
            answer = dataclasses.replace(ask, tokens=24)
            asyncio.run(by_engine(engine, side, [answer], [0.0]))
            sides.append(side)
            vocabulary = model.config.get_text_config().vocab_size
            said = asyncio.run(ids_of(engine, answer))
            ask = dataclasses.replace(ask, ids=(*ask.ids, *said, *(rng.randrange(3, vocabulary) for _ in range(16))))
        engine.shutdown()
        note("conversation " + ("without reuse" if fresh else "with reuse"))
    return both


async def ids_of(engine: Engine, ask: Ask) -> list[int]:
    found: list[int] = []
    async for delta in engine.generate(ask.prompt, ask.rules, request_id=uuid.uuid4().hex):
        found += delta.token_ids
    return found


def start(model: MiniGPT4ForConditionalGeneration, settings: EngineSettings) -> Engine:
    processor = SimpleNamespace(
        tokenizer=Words(model.config.get_text_config().vocab_size),
        image_processor=MiniGPT4ImageProcessor(model.config.vision_config.image_size),
    )
    engine = Engine(model, processor, settings)  # type: ignore[arg-type]
    engine.start()
    return engine


# The roofline.


@dataclass(frozen=True)
class Machine:
    """The device at its best, measured here: bytes per second of a copy, operations per second of a product."""

    bandwidth: float
    flops: float


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """A large copy (read and write counted) and a large matrix product, the best of several."""
    large = device.type == "cuda"
    source = torch.zeros((2**32 if large else 2**27) // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    left = torch.randn(side, side, device=device).to(dtype)

    def best(run: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(7):
            if large:
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if large:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    return Machine(copied, 2 * side**3 / best(lambda: left @ left))


def roofline(model: MiniGPT4ForConditionalGeneration, machine: Machine) -> dict[str, Callable[..., float]]:
    """Seconds that each task takes at least: the larger of its bytes over bandwidth and its operations over peak.

    A step reads all of the LLM's weights once, and the keys and values of each sequence; a token costs two operations
    per weight (Williams, Waterman, Patterson 2009; Kaplan et al. 2020 for the count of operations).
    """
    text = model.config.get_text_config()
    llm = sum(p.numel() for p in model.language_model.parameters()) - text.vocab_size * text.hidden_size
    seeing = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.language_model.parameters())
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    size = model.dtype.itemsize
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    kv = 2 * text.num_hidden_layers * heads * size

    def longest(read: float, operations: float) -> float:
        return max(read / machine.bandwidth, operations / machine.flops)

    attention = 4 * vision.num_hidden_layers * vision.hidden_size * patches**2
    return {
        "decode_s": lambda batch, context: longest(llm * size + batch * context * kv, 2 * llm * batch),
        "prefill_s": lambda tokens: longest(llm * size, 2 * llm * tokens),
        "images_s": lambda count: longest(seeing * size, count * (2 * seeing * patches + attention)),
    }


def device_figures(
    model: MiniGPT4ForConditionalGeneration, engine: Engine, machine: Machine, batches: Iterable[int]
) -> dict[str, dict[str, float]]:
    """Decode at several batch sizes, image encoding, the first token after a decoded picture, and their limits."""
    limits = roofline(model, machine)
    found: dict[str, dict[str, float]] = {}
    preset = dataclasses.replace(PRESETS["cpu"], requests=max(batches))
    todo = asks(model.config, preset, seed=300)
    for batch in batches:
        side = Side("")
        same = [dataclasses.replace(ask, tokens=200) for ask in todo[:batch]]
        asyncio.run(by_engine(engine, side, same, [0.0] * batch))
        step = statistics.median(side.itl)
        context = statistics.mean(len(ask.ids) for ask in same) + 100
        limit = limits["decode_s"](batch, context)
        found[f"decode, batch {batch}, tokens/s"] = figure(batch / step, batch / limit)
        note(f"decode at batch {batch}")
    to_tensor = MiniGPT4ImageProcessor(model.config.vision_config.image_size).to_tensor
    pixels = [to_tensor(decode_picture(ask.picture.data)) for ask in todo[:32]]
    for count in (1, len(pixels)):
        seconds = timed(lambda count=count: engine._runner.encode(pixels[:count]), model.device)  # type: ignore[misc]
        found[f"image encoding, batch {count}, images/s"] = figure(count / seconds, count / limits["images_s"](count))
    firsts = []
    for ask in asks(model.config, dataclasses.replace(preset, requests=12), seed=400):
        side = Side("")
        short = dataclasses.replace(ask, tokens=1)
        held = asyncio.run(engine._images.resolve([short.picture]))  # decoded before, and kept until it is encoded
        asyncio.run(by_engine(engine, side, [short], [0.0]))
        del held
        firsts += side.ttft
    limit = limits["images_s"](1) + limits["prefill_s"](len(todo[0].ids))
    seconds = statistics.median(firsts)
    found["first token from a decoded picture, ms"] = {
        "measured": round(seconds * 1000, 2),
        "limit": round(limit * 1000, 2),
        "fraction": round(limit / seconds, 3),
    }
    return found


def timed(run: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(5):
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def figure(measured: float, limit: float) -> dict[str, float]:
    return {"measured": round(measured, 1), "limit": round(limit, 1), "fraction": round(measured / limit, 3)}


# Soak.


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
        deltas = engine.generate(dataclasses.replace(ask).prompt, rules, request_id=name)
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


# Reporting.


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def table(title: str, sides: Sequence[Side]) -> str:
    """A Markdown table."""
    lines = [
        f"### {title}\n",
        "| | tokens/s | TTFT p50 / p95, ms | ITL p50 / p95, ms | prefill tokens | from the cache | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for side in sides:
        if side.missing is not None:
            lines.append(f"| {side.name} | not available: {side.missing} | | | | | |")
            continue
        first = (
            f"{1000 * percentile(side.ttft, 50):,.0f} / {1000 * percentile(side.ttft, 95):,.0f}" if side.ttft else "–"
        )
        between = (
            f"{1000 * percentile(side.itl, 50):,.1f} / {1000 * percentile(side.itl, 95):,.1f}" if side.itl else "–"
        )
        lines.append(
            f"| {side.name} | {side.rate:,.0f} | {first} | {between} | {side.prefill_tokens:,} | "
            f"{side.cached_tokens:,} | {side.decode_steps or '–'} |"
        )
    return "\n".join(lines) + "\n"


def ratios(
    sides: Sequence[Side], waiting: Sequence[Side], turns: Sequence[Sequence[Side]], *, device_is_cpu: bool
) -> dict[str, float]:
    """What the engine is judged by."""
    a, b, c, d = sides
    found = {"throughput to (a)": d.rate / a.rate, "throughput to (b)": d.rate / b.rate}
    if c.missing is None:
        found["throughput to (c)"] = d.rate / c.rate
    found["(a)'s TTFT p50 to ours, Poisson"] = percentile(waiting[0].ttft, 50) / percentile(waiting[1].ttft, 50)
    found["last turn's TTFT without reuse to with"] = turns[1][-1].ttft[0] / turns[0][-1].ttft[0]
    with_reuse, without = (sum(side.prefill_tokens for side in line) for line in turns)
    found["prefill with reuse, share"] = with_reuse / without
    if device_is_cpu:
        for name, side in (("(a)", a), ("(b)", b), ("(c)", c)):
            if side.missing is None:
                found[f"tokens per CPU second to {name}"] = d.tokens / d.cpu_seconds * side.cpu_seconds / side.tokens
    return {name: round(value, 3) for name, value in found.items()}


def plot(
    path: Path, sides: Sequence[Side], waiting: Sequence[Side], turns: Sequence[Sequence[Side]], title: str
) -> None:
    """Three pictures in one: throughput, the wait for the first token, and a chat's turns."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    plain, ours = "#9aa5b1", "#1f6feb"
    figure_, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    there = [side for side in sides if side.missing is None]
    short = {
        "(a)": "one at\na time",
        "(b)": "static\nbatches",
        "(c)": "transformers'\ncontinuous",
        "(d)": "this\nengine",
    }
    names = [short[side.name[:3]] for side in there]
    bars = left.bar(
        names, [side.rate for side in there], color=[ours if "(d)" in side.name else plain for side in there]
    )
    left.bar_label(bars, [f"{side.rate:,.0f}" for side in there], padding=2)
    left.set_title("Burst: tokens per second")
    for side, color in zip(waiting, (plain, ours), strict=True):
        values = sorted(1000 * value for value in side.ttft)
        shares = [(i + 1) / len(values) for i in range(len(values))]
        middle.step(
            values, shares, where="post", color=color, linewidth=2.2, label=short[side.name[:3]].replace("\n", " ")
        )
    middle.set_xscale("log")
    middle.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    middle.xaxis.set_major_formatter("{x:g}")
    middle.xaxis.set_minor_formatter(NullFormatter())
    middle.set_ylim(0, 1.02)
    middle.set_xlabel("time to the first token, ms")
    middle.set_title("Poisson arrivals: share of requests answered")
    middle.legend(frameon=False, loc="best")
    for line, color, label in zip(turns, (ours, plain), ("with reuse", "without reuse"), strict=True):
        right.plot(
            range(1, len(line) + 1),
            [1000 * side.ttft[0] for side in line],
            marker="o",
            color=color,
            linewidth=2.2,
            label=label,
        )
    right.set_ylim(bottom=0)
    right.set_xticks(range(1, len(turns[0]) + 1))
    right.set_xlabel("turn of a chat about one picture")
    right.set_title("Time to the first token, ms")
    right.legend(frameon=False)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    figure_.suptitle(title)
    figure_.savefig(path, dpi=120)
    plt.close(figure_)


def machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
