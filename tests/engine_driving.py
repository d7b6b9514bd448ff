"""What tests of the engine share: requests, whole answers, and the plain path that they are compared with."""

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
PICTURES = {color: validate_image(encode(draw(color)), ImageLimits()) for color in COLORS}


@dataclass
class Whole:
    """All that was heard of one of a request's answers."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    deltas: int = 0


@contextmanager
def running(small_model: Any, **settings: Any) -> Iterator[Engine]:
    """An engine that is shut down at the end."""
    model, processor = small_model
    engine = Engine(model, processor, EngineSettings(**settings))
    engine.start()
    try:
        yield engine
    finally:
        engine.shutdown()


@dataclass
class Rations:
    """Steps that an engine may make.

    Attributes:
        spent: set when the engine stands in a step that it may not make yet.
    """

    left: threading.Semaphore
    spent: threading.Event

    def take(self) -> None:
        """One step's, as soon as there is one."""
        if not self.left.acquire(blocking=False):
            self.spent.set()
            assert self.left.acquire(timeout=120)

    def allow(self, steps: int) -> None:
        """So many more."""
        self.spent.clear()
        self.left.release(steps)

    async def used_up(self) -> None:
        """Returns when the engine has made all its steps and waits in the next one."""
        assert await asyncio.to_thread(self.spent.wait, 60)


@contextmanager
def few_steps(engine: Engine, steps: int = 30) -> Iterator[Rations]:
    """Until the end the engine makes so many steps and no more: a long answer has begun and can't be over.

    A test that instead hopes to be faster than four hundred tokens fails on a machine that others use.
    """
    rations, real = Rations(threading.Semaphore(steps), threading.Event()), engine._runner.step

    def step(*given: Any) -> Any:
        rations.take()
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._runner, "step", step)
        try:
            yield rations
        finally:
            rations.allow(100_000)


def prompt(small_model: Any, turns: Sequence[Turn], colors: Sequence[str] = ()) -> Prompt:
    """A chat that awaits its answer, about pictures of these colours."""
    ids = small_model[1].encode_chat(turns).token_ids
    return Prompt(tuple(ids), tuple(PICTURES[color] for color in colors))


async def collect(engine: Engine, asked: Prompt, rules: SamplingParams, name: str) -> list[Whole]:
    """All answers of a request."""
    answers = [Whole() for _ in range(rules.n)]
    async for delta in engine.generate(asked, rules, request_id=name):
        add(answers[delta.index], delta)
    return answers


def add(answer: Whole, delta: Delta) -> None:
    """One more piece."""
    assert answer.finish_reason is None, "something came after the end"
    answer.text += delta.text
    answer.ids += delta.token_ids
    answer.finish_reason = delta.finish_reason
    answer.usage, answer.timings = delta.usage, delta.timings
    answer.deltas += 1


def plain_ids(small_model: Any, asked: Prompt, rules: SamplingParams) -> list[int]:
    """The greedy ids of ``generate()`` on the model itself."""
    model, processor = small_model
    pixels = [processor.image_processor.to_tensor(decode_image(picture.data)) for picture in asked.images]
    stop = StoppingCriteriaList([StopAtText(processor.tokenizer, rules.stop)] if rules.stop else [])
    out = model.generate(
        input_ids=torch.tensor([asked.token_ids]),
        pixel_values=torch.stack(pixels) if pixels else None,
        max_new_tokens=rules.max_tokens,
        do_sample=False,
        repetition_penalty=rules.repetition_penalty,
        stopping_criteria=stop,
    )
    return [int(token) for token in out[0]]


async def idle(engine: Engine) -> None:
    """Returns when nothing runs, waits or is held; fails after a minute."""
    async with asyncio.timeout(60):
        while (stats := engine.stats()).running or stats.waiting or stats.blocks_held or stats.accepted:
            await asyncio.sleep(0.002)


async def arrived(engine: Engine, sequences: int) -> None:
    """Returns when so many sequences have come, and the engine's thread has seen them or will before its next step."""
    async with asyncio.timeout(60):
        while engine.stats().accepted < sequences or engine._preparing:
            await asyncio.sleep(0.002)


__all__ = [
    "COLORS",
    "PICTURES",
    "EncodedImage",
    "Rations",
    "Whole",
    "add",
    "arrived",
    "collect",
    "few_steps",
    "idle",
    "plain_ids",
    "prompt",
    "running",
]
