"""The stages of the engine's benchmark: a burst, Poisson arrivals, a conversation. Each runs several ways to answer."""

import asyncio
import dataclasses
import gc
import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

from minigpt4_serve.engine import Engine
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from minigpt4_serve.settings import EngineSettings
from tools.bench.baselines import ContinuousBatching, generate_batch, run_generate
from tools.bench.measurement import Measurement, log_progress
from tools.bench.workload import BenchRequest, NumericTokenizer, Preset, make_requests

__all__ = ["burst", "conversation", "poisson", "run_engine", "start_engine"]

STATIC_BATCH = 8
ONE_AT_A_TIME = "(a) one at a time"
THIS_ENGINE = "(d) this engine"

_CHAT_ANSWER_TOKENS = 24
_CHAT_QUESTION_TOKENS = 16


def start_engine(model: MiniGPT4ForConditionalGeneration, settings: EngineSettings) -> Engine:
    """A running engine. Delete the one before first: it holds its KV cache as long as anything references it."""
    gc.collect()
    torch.cuda.empty_cache()
    processor = SimpleNamespace(
        tokenizer=NumericTokenizer(model.config.get_text_config().vocab_size),
        image_processor=MiniGPT4ImageProcessor(model.config.vision_config.image_size),
    )
    engine = Engine(model, processor, settings)  # type: ignore[arg-type]  # random models have no vocabulary file
    engine.start()
    return engine


async def run_engine(
    engine: Engine, measured: Measurement, requests: list[BenchRequest], arrivals: Sequence[float] | None = None
) -> list[tuple[int, ...]]:
    """Send requests to the engine, each at its arrival in seconds from now; all at once if no arrivals are given.

    Returns the ids of their answers.
    """
    before = engine.stats()
    began = time.perf_counter()

    async def run_one(one: BenchRequest, arrival: float) -> tuple[int, ...]:
        await asyncio.sleep(max(0.0, began + arrival - time.perf_counter()))
        token_times: list[float] = []
        ids: list[int] = []
        async for delta in engine.generate(one.prompt, one.sampling, request_id=uuid.uuid4().hex):
            token_times += [time.perf_counter()] * len(delta.token_ids)
            ids += delta.token_ids
            if delta.timings is not None:
                measured.image_decode_seconds += delta.timings.images_s
        measured.add_latencies(began + arrival, token_times)
        measured.tokens += len(ids)
        return tuple(ids)

    when = [0.0] * len(requests) if arrivals is None else arrivals
    answers = await asyncio.gather(*(run_one(one, arrival) for one, arrival in zip(requests, when, strict=True)))
    measured.seconds += time.perf_counter() - began
    measured.add_stats(before, engine.stats())
    return answers


def burst(
    model: MiniGPT4ForConditionalGeneration, engine: Engine, preset: Preset, *, with_transformers: bool
) -> list[Measurement]:
    """All requests at once, answered in all four ways in turn, round by round."""
    measurements = [
        Measurement(ONE_AT_A_TIME),
        Measurement(f"(b) static batches of {STATIC_BATCH}"),
        continuous := Measurement("(c) transformers' continuous batching"),
        Measurement(THIS_ENGINE),
    ]
    if not with_transformers:
        continuous.unavailable = "left out"
    continuous_batching = ContinuousBatching(model)
    runs: list[Callable[[Measurement, list[BenchRequest]], object]] = [
        lambda measured, requests: run_generate(model, measured, requests, 1),
        lambda measured, requests: run_generate(model, measured, requests, STATIC_BATCH),
        continuous_batching.run,
        lambda measured, requests: asyncio.run(run_engine(engine, measured, requests)),
    ]
    for number in range(preset.rounds + 1):
        warm_up = number == 0
        requests = make_requests(model.config, preset, seed=number)
        for measurement, run in zip(measurements, runs, strict=True):
            if measurement.unavailable is not None:
                continue
            measured = Measurement(measurement.name) if warm_up else measurement
            began = time.process_time()
            try:
                run(measured, requests[:STATIC_BATCH] if warm_up else requests)
                measured.cpu_seconds += time.process_time() - began
            except Exception as error:
                if measurement is not continuous:
                    raise
                reason = (str(error).splitlines() or [""])[0]
                measurement.unavailable = f"{type(error).__name__}: {reason}"[:200]
            log_progress(f"burst, round {number}: {measurement.name}")
    continuous_batching.close()
    return measurements


def poisson(model: MiniGPT4ForConditionalGeneration, engine: Engine, preset: Preset) -> tuple[float, list[Measurement]]:
    """Arrivals twice as fast as (a) can answer. Returns the rate per second and the measurements of (a) and (d).

    (a) answers one at a time, so its queue follows from measured answers: each starts when the previous one is done.
    """
    plain = Measurement(ONE_AT_A_TIME)
    ours = Measurement(THIS_ENGINE)
    requests = make_requests(model.config, preset, seed=77)
    alone: list[tuple[float, list[float]]] = []  # of each request: its seconds, and those until each token
    for one in requests:
        began = time.perf_counter()
        token_times = generate_batch(model, Measurement("alone"), [one], began)
        alone.append((time.perf_counter() - began, [at - began for at in token_times]))
    rate = 2 / statistics.mean(seconds for seconds, _ in alone)
    rng = random.Random(7)
    now = 0.0
    arrivals = []
    for _ in requests:
        now += rng.expovariate(rate)
        arrivals.append(now)
    free_at = 0.0
    for arrived, (seconds, token_times), one in zip(arrivals, alone, requests, strict=True):
        start = max(free_at, arrived)
        free_at = start + seconds
        plain.add_latencies(arrived, [start + at for at in token_times])
        plain.tokens += one.answer_tokens
        plain.prefill_tokens += len(one.ids)
        plain.decode_steps += one.answer_tokens
    plain.seconds = free_at
    asyncio.run(run_engine(engine, ours, requests, arrivals))
    log_progress("Poisson arrivals")
    return rate, [plain, ours]


def conversation(
    model: MiniGPT4ForConditionalGeneration, preset: Preset, settings: EngineSettings
) -> tuple[list[Measurement], list[Measurement]]:
    """One conversation about one image, a measurement per turn: with reuse of the KV cache, and without."""
    with_reuse = _run_conversation(model, preset, settings, reuse=True)
    return with_reuse, _run_conversation(model, preset, settings, reuse=False)


def _run_conversation(
    model: MiniGPT4ForConditionalGeneration, preset: Preset, settings: EngineSettings, *, reuse: bool
) -> list[Measurement]:
    """All turns on one engine or, without reuse, each on a new one that has answered something else before."""
    rng = random.Random(9)
    vocabulary = model.config.get_text_config().vocab_size
    request = dataclasses.replace(make_requests(model.config, preset, seed=5)[0], answer_tokens=_CHAT_ANSWER_TOKENS)
    engine: Engine | None = None
    turns = []
    for turn in range(preset.turns):
        if engine is None:
            engine = start_engine(model, settings)
            if not reuse:
                _warm_up(engine, make_requests(model.config, preset, seed=900)[0])
        turns.append(measured := Measurement(f"turn {turn + 1}"))
        [answer] = asyncio.run(run_engine(engine, measured, [request]))
        question = [rng.randrange(3, vocabulary) for _ in range(_CHAT_QUESTION_TOKENS)]
        request = dataclasses.replace(request, ids=(*request.ids, *answer, *question))
        if not reuse or turn == preset.turns - 1:
            engine.shutdown()
            engine = None
    log_progress("conversation " + ("with reuse" if reuse else "without reuse"))
    return turns


def _warm_up(engine: Engine, request: BenchRequest) -> None:
    """Trigger the engine's lazy allocations; the prompt shares no prefix with the measured ones."""
    request = dataclasses.replace(request, ids=tuple(reversed(request.ids)))
    asyncio.run(run_engine(engine, Measurement("warm-up"), [request]))
