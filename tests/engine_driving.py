"""What tests of the engine share: requests, whole answers, and the plain path that they are compared with."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from drawing import draw, encode
from transformers import StoppingCriteriaList

from minigpt4_serve.engine import Delta, Engine, Prompt, SamplingParams, Timings, Usage
from minigpt4_serve.model import Turn
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.pictures import ImageLimits, Picture, check_picture, decode_picture
from minigpt4_serve.settings import EngineSettings

COLORS = ("red", "green", "blue", "orange", "purple", "black")
PICTURES = {color: check_picture(encode(draw(color)), ImageLimits()) for color in COLORS}


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
    pixels = [processor.image_processor.to_tensor(decode_picture(picture.data)) for picture in asked.pictures]
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
    """Returns when nothing runs or waits; fails after ten seconds."""
    async with asyncio.timeout(10):
        while (stats := engine.stats()).running or stats.waiting:
            await asyncio.sleep(0.002)


__all__ = ["COLORS", "PICTURES", "Picture", "Whole", "add", "collect", "idle", "plain_ids", "prompt", "running"]
