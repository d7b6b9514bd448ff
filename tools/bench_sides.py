"""The four ways to answer side by side, and what is written down of them: times, tokens, steps, cache hits."""

import asyncio
import dataclasses
import gc
import itertools
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from bench_asks import Ask, Preset, Words, asks
from transformers import StoppingCriteria, StoppingCriteriaList

from minigpt4_serve.engine import Engine, EngineStats
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from minigpt4_serve.pictures import decode_picture
from minigpt4_serve.settings import EngineSettings

__all__ = ["Side", "burst", "by_engine", "conversation", "note", "percentile", "poisson", "start"]

STATIC_BATCH = 8


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
                del engine
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
        del engine
        note("conversation " + ("without reuse" if fresh else "with reuse"))
    return both


async def ids_of(engine: Engine, ask: Ask) -> list[int]:
    found: list[int] = []
    async for delta in engine.generate(ask.prompt, ask.rules, request_id=uuid.uuid4().hex):
        found += delta.token_ids
    return found


def start(model: MiniGPT4ForConditionalGeneration, settings: EngineSettings) -> Engine:
    """An engine. One that was there before holds its KV cache until nobody names it any more: delete it first."""
    gc.collect()
    torch.cuda.empty_cache()
    processor = SimpleNamespace(
        tokenizer=Words(model.config.get_text_config().vocab_size),
        image_processor=MiniGPT4ImageProcessor(model.config.vision_config.image_size),
    )
    engine = Engine(model, processor, settings)  # type: ignore[arg-type]
    engine.start()
    return engine


def note(text: str) -> None:
    """What is going on, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
