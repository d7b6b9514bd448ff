"""Beam search in the engine against transformers' ``generate``, on the small random model."""

import asyncio
import random
from typing import Any

import pytest
import torch
from engine_driving import COLORS, collect, make_prompt, running_engine, step_gate, wait_until_idle
from transformers import StoppingCriteriaList

from minigpt4_serve.engine.beam_search import BeamSearch
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.images import decode_image
from minigpt4_serve.model import Turn
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.protocol import Prompt, SamplingParams


def reference_beams(small_model: Any, asked: Prompt, rules: SamplingParams) -> list[list[int]]:
    """The best ``n`` answers of ``generate(num_beams=…)``, without padding."""
    model, processor = small_model
    pixels = [processor.image_processor.to_tensor(decode_image(image.data)) for image in asked.images]
    out = model.generate(
        input_ids=torch.tensor([asked.token_ids]),
        pixel_values=torch.stack(pixels) if pixels else None,
        max_new_tokens=rules.max_tokens,
        min_new_tokens=rules.min_tokens or None,
        do_sample=False,
        num_beams=rules.beams,
        num_return_sequences=rules.n,
        length_penalty=rules.length_penalty,
        repetition_penalty=rules.repetition_penalty,
        stopping_criteria=StoppingCriteriaList([StopAtText(processor.tokenizer, rules.stop)] if rules.stop else []),
    )
    return [[int(token) for token in row[len(asked.token_ids) :]] for row in out]


def random_question(small_model: Any, rng: random.Random) -> Prompt:
    colors = rng.choices(COLORS, k=rng.choice([0, 1, 1, 2]))
    words = " ".join(rng.choices(("what", "is", "the", "round", "thing", "here"), k=rng.randint(1, 9)))
    return make_prompt(small_model, [Turn("user", words, len(colors))], colors)


def random_sampling(rng: random.Random) -> SamplingParams:
    beams = rng.choice([2, 2, 3, 5])
    return SamplingParams(
        beams=beams,
        n=rng.randint(1, beams),
        max_tokens=rng.choice([1, 4, 10, 16]),
        min_tokens=rng.choice([0, 1]),
        length_penalty=rng.choice([1.0, 0.0, 2.0, -1.0]),
        repetition_penalty=rng.choice([1.0, 1.5]),
        stop=rng.choice([(), ("a",), ("e", "###")]),
    )


@pytest.mark.parametrize("tight", [False, True], ids=["no preemption", "preempted"])
async def test_answers_equal_those_of_generate(small_model: Any, tight: bool) -> None:
    torch.set_num_threads(1)
    rng = random.Random(3)
    asked = [(random_question(small_model, rng), random_sampling(rng)) for _ in range(24)]
    sizes = {"block_size": 4, "num_blocks": 62} if tight else {}
    with running_engine(small_model, max_running=10, **sizes) as engine:
        greedy = SamplingParams(max_tokens=30, ignore_eos=True)
        others = [collect(engine, random_question(small_model, rng), greedy, f"greedy {i}") for i in range(6)]
        found = await asyncio.gather(
            *(collect(engine, q, rules, str(i)) for i, (q, rules) in enumerate(asked)), *others
        )
        stats = engine.stats()
    assert (stats.blocks_held, stats.running, engine.stats().accepted) == (0, 0, 0)
    assert (stats.preemptions > 0) == tight
    for (q, rules), answers in zip(asked, found, strict=False):
        for answer, expected in zip(answers, reference_beams(small_model, q, rules), strict=True):
            # The reference pads its rows to the longest one.
            assert expected[: len(answer.ids)] == list(answer.ids)
            assert set(expected[len(answer.ids) :]) <= {0, 2}
            assert answer.finish_reason == ("length" if len(answer.ids) == rules.max_tokens else "stop") or rules.stop
        last = answers[-1]
        assert last.usage is not None
        assert last.usage.completion_tokens == sum(len(answer.ids) for answer in answers)


async def test_hypotheses_share_the_prompts_blocks(small_model: Any) -> None:
    asked = make_prompt(small_model, [Turn("user", "What is it? " * 5, 1)], ["red"])
    with running_engine(small_model, block_size=4) as engine:
        (answer,) = await collect(engine, asked, SamplingParams(beams=4, max_tokens=8, ignore_eos=True), "r")
        stats = engine.stats()
    assert stats.prefill_tokens == len(asked.token_ids)
    assert stats.decode_steps == 8
    assert answer.deltas == 1
    assert len(answer.ids) == 8


async def test_an_aborted_search_frees_its_running_slots(small_model: Any) -> None:
    asked = make_prompt(small_model, [Turn("user", "What?")])
    with running_engine(small_model) as engine:
        rules = SamplingParams(beams=3, n=2, max_tokens=300, ignore_eos=True)
        with step_gate(engine) as gate:
            task = asyncio.create_task(collect(engine, asked, rules, "r"))
            await gate.wait_until_exhausted()
            engine.abort("r")
        answers = await asyncio.wait_for(task, 60)
        await wait_until_idle(engine)
        assert [answer.finish_reason for answer in answers] == ["abort", "abort"]
        assert (engine.stats().blocks_held, engine.stats().accepted) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ({"max_running": 2}, {"beams": 3}),
        ({"num_blocks": 20, "block_size": 4}, {"beams": 5, "max_tokens": 60}),
    ],
)
async def test_beams_that_do_not_fit_are_rejected(
    small_model: Any, settings: dict[str, Any], rules: dict[str, Any]
) -> None:
    with running_engine(small_model, **settings) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await collect(engine, make_prompt(small_model, [Turn("user", "What?")]), SamplingParams(**rules), "r")
        assert caught.value.param == "beams"


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"logprobs": True}])
def test_parameters_that_beams_exclude_are_rejected(other: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="Beam search"):
        SamplingParams(beams=2, **other)


@pytest.mark.parametrize("stop", [("字",), ("。",), ("é",), ("é字",), (" #",), ("\ud800", "é")])
def test_stop_strings_are_found_in_any_tokenization(small_model: Any, stop: tuple[str, ...]) -> None:
    """Characters that the vocabulary lacks are byte tokens; a string may begin with a space."""
    tokenizer = small_model[1].tokenizer
    tokens = [part for character in f"a{stop[-1]}".replace(" ", "▁") for part in tokenize(tokenizer, character)]
    rules = SamplingParams(beams=2, stop=stop)
    leader = Sequence("r", 0, [1], [1], rules, seed=0)
    leader.token_ids += tokens[:-1]
    leader.num_computed = len(leader)
    search = BeamSearch(leader, (), tokenizer.decode_ids)
    assert search.offer(leader, [(tokens[-1], -0.1), (tokens[0], -0.2), (tokens[0], -0.3)])
    search.select()
    assert [(found.ids, found.reason) for found in search.finished] == [(tuple(tokens), "stop")]
    ends = StopAtText(tokenizer, stop)(torch.tensor([tokens, [*tokens[:-1], tokens[0]]]), None)
    assert ends.tolist() == [True, False]


def tokenize(tokenizer: Any, character: str) -> list[int]:
    """The character's token id, or those of its bytes."""
    own = tokenizer.sentencepiece.piece_to_id(character)
    return [own] if own else [tokenizer.sentencepiece.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
