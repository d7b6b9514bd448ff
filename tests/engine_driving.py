"""Drives the engine in tests: requests, collected answers, gated steps, and reference answers of ``generate``."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from drawing import draw, encode
from transformers import StoppingCriteriaList

from minigpt4_serve.engine import Engine
from minigpt4_serve.images import EncodedImage, ImageLimits, decode_image, validate_image
from minigpt4_serve.model import Turn
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams, Timings, Usage
from minigpt4_serve.settings import EngineSettings

COLORS = ("red", "green", "blue", "orange", "purple", "black")
IMAGES = {color: validate_image(encode(draw(color)), ImageLimits()) for color in COLORS}


@dataclass
class CollectedAnswer:
    """All deltas of one answer, joined."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    deltas: int = 0


@contextmanager
def running_engine(small_model: Any, **settings: Any) -> Iterator[Engine]:
    """A running engine; shut down at the end."""
    model, processor = small_model
    engine = Engine(model, processor, EngineSettings(**settings))
    engine.start()
    try:
        yield engine
    finally:
        engine.shutdown()


@dataclass
class StepGate:
    """Lets an engine compute a limited number of steps.

    Attributes:
        left: steps that it may compute.
        spent: set while the engine waits at the beginning of a step.
    """

    left: threading.Semaphore
    spent: threading.Event

    def take(self) -> None:
        """Wait for a step; called by the engine thread."""
        if not self.left.acquire(blocking=False):
            self.spent.set()
            assert self.left.acquire(timeout=120)

    def allow(self, steps: int) -> None:
        """Allow more steps."""
        self.spent.clear()
        self.left.release(steps)

    async def wait_until_exhausted(self) -> None:
        """Return once the engine has computed all allowed steps and waits in the next one."""
        assert await asyncio.to_thread(self.spent.wait, 60)


@contextmanager
def step_gate(engine: Engine, steps: int = 30) -> Iterator[StepGate]:
    """Limit the engine to this many steps until the end, so that a long answer has started but can't finish.

    Without it, a test would have to be faster than the engine, and fail on a busy machine.
    """
    gate = StepGate(threading.Semaphore(steps), threading.Event())
    original = engine._runner.step

    def step(*arguments: Any) -> Any:
        gate.take()
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._runner, "step", step)
        try:
            yield gate
        finally:
            gate.allow(100_000)


def make_prompt(small_model: Any, turns: Sequence[Turn], colors: Sequence[str] = ()) -> Prompt:
    """The prompt of a chat about images of these colors."""
    ids = small_model[1].encode_chat(turns).token_ids
    return Prompt(tuple(ids), tuple(IMAGES[color] for color in colors))


async def collect(engine: Engine, asked: Prompt, rules: SamplingParams, name: str) -> list[CollectedAnswer]:
    """All answers of a request."""
    answers = [CollectedAnswer() for _ in range(rules.n)]
    async for delta in engine.generate(asked, rules, request_id=name):
        append_delta(answers[delta.index], delta)
    return answers


def append_delta(answer: CollectedAnswer, delta: Delta) -> None:
    """Add a delta to the answer."""
    assert answer.finish_reason is None, "a delta follows the answer's end"
    answer.text += delta.text
    answer.ids += delta.token_ids
    answer.finish_reason = delta.finish_reason
    answer.usage = delta.usage
    answer.timings = delta.timings
    answer.deltas += 1


def reference_ids(small_model: Any, asked: Prompt, rules: SamplingParams) -> list[int]:
    """Token ids of transformers' greedy ``generate``."""
    model, processor = small_model
    pixels = [processor.image_processor.to_tensor(decode_image(image.data)) for image in asked.images]
    stop = StoppingCriteriaList([StopAtText(processor.tokenizer, rules.stop)] if rules.stop else [])
    out = model.generate(
        input_ids=torch.tensor([asked.token_ids]),
        pixel_values=torch.stack(pixels) if pixels else None,
        max_new_tokens=rules.max_tokens,
        do_sample=False,
        repetition_penalty=rules.repetition_penalty,
        stopping_criteria=stop,
    )
    return [int(token) for token in out[0, len(asked.token_ids) :]]


async def wait_until_idle(engine: Engine) -> None:
    """Return once nothing runs, waits or holds blocks; fails after a minute."""
    async with asyncio.timeout(60):
        while (stats := engine.stats()).running or stats.waiting or stats.blocks_held or stats.accepted:
            await asyncio.sleep(0.002)


async def wait_until_accepted(engine: Engine, sequences: int) -> None:
    """Return once this many sequences are accepted and in the engine's inbox or scheduler."""
    async with asyncio.timeout(60):
        while engine.stats().accepted < sequences or engine._preparing:
            await asyncio.sleep(0.002)


__all__ = [
    "COLORS",
    "IMAGES",
    "CollectedAnswer",
    "EncodedImage",
    "StepGate",
    "append_delta",
    "collect",
    "make_prompt",
    "reference_ids",
    "running_engine",
    "step_gate",
    "wait_until_accepted",
    "wait_until_idle",
]
