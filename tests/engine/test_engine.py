"""The engine as a whole on a small random model (CPU, float32): answers, counters, and behavior towards callers."""

import asyncio
import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from engine_driving import (
    COLORS,
    IMAGES,
    CollectedAnswer,
    collect,
    make_prompt,
    reference_ids,
    running_engine,
    step_gate,
    wait_until_accepted,
    wait_until_idle,
)

from minigpt4_serve.engine import Engine
from minigpt4_serve.engine.stats import EngineCounters
from minigpt4_serve.errors import ContextLengthExceeded, InvalidImage, InvalidRequest, Overloaded
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import Prompt, SamplingParams
from minigpt4_serve.settings import EngineSettings

GREEDY = SamplingParams(max_tokens=12)
WORDS = [
    "what",
    "is",
    "the",
    "color",
    "of",
    "this",
    "round",
    "thing",
    "and",
    "where",
    "does",
    "it",
    "stand",
    "in",
    "all",
    "these",
    "pictures",
]


def words(rng: random.Random, most: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def ask(small_model: Any, text: str = "What is it?", *colors: str) -> Prompt:
    return make_prompt(small_model, [Turn("user", text, len(colors))], colors)


async def test_greedy_tokens_equal_generate(small_model: Any) -> None:
    """200 requests: chats with several turns and images, all lengths and orders, in a cache that is far too small."""
    torch.set_num_threads(1)
    asked: list[tuple[Prompt, SamplingParams, CollectedAnswer]] = []

    async def chat(engine: Engine, number: int) -> None:
        rng = random.Random(number)  # one for each chat: its content must not depend on the order of answers
        turns: list[Turn] = []
        colors: list[str] = []
        for turn in range(rng.choice([1, 1, 2, 3])):
            images = rng.choice([0, 1, 1, 2]) if turn == 0 else rng.choice([0, 0, 1])
            colors += rng.choices(COLORS, k=images)
            turns.append(Turn("user", words(rng), images))
            question = make_prompt(small_model, turns, colors)
            if len(question.token_ids) + 40 > engine.context_length:
                break
            rules = SamplingParams(
                max_tokens=rng.choice([1, 8, 30, 40]),
                stop=rng.choice([(), ("###",), ("e", "###")]),
                repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            )
            (answer,) = await collect(engine, question, rules, f"{number}-{turn}")
            asked.append((question, rules, answer))
            turns.append(Turn("assistant", answer.text))

    async def run_chats(engine: Engine, numbers: list[int]) -> None:
        while numbers:
            await chat(engine, numbers.pop())

    with running_engine(small_model, max_running=12, num_blocks=30, block_size=8, max_prefill_tokens=50) as engine:
        numbers = list(range(140))
        await asyncio.gather(*(run_chats(engine, numbers) for _ in range(12)))
        stats = engine.stats()
    assert len(asked) >= 200
    assert stats.preemptions >= 10
    assert stats.cached_tokens > 1000
    assert stats.blocks_held == 0
    assert sum(len(question.images) > 1 for question, _, _ in asked) >= 40
    for question, rules, answer in asked:
        assert list(answer.ids) == reference_ids(small_model, question, rules)


async def test_sampled_answers_depend_on_their_seed_only(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=20, temperature=1.2, top_p=0.9, seed=11)
    question = ask(small_model, "Describe it.", "red")
    with running_engine(small_model, max_running=8) as engine:
        (alone,) = await collect(engine, question, rules, "alone")
        others = [
            collect(engine, ask(small_model, words(random.Random(i)), COLORS[i % 6]), replace(rules, seed=i), f"c{i}")
            for i in range(10)
        ]
        (again,), (other,), *_ = await asyncio.gather(
            collect(engine, question, rules, "again"), collect(engine, question, replace(rules, seed=12), "o"), *others
        )
    assert again.ids == alone.ids
    assert other.ids != alone.ids
    # A preempted and recomputed answer is the same.
    with running_engine(small_model, max_running=8, num_blocks=20, block_size=8) as engine:
        with step_gate(engine, 0):
            answering = asyncio.gather(
                collect(engine, question, rules, "tight"),
                *(
                    collect(engine, ask(small_model, f"{i}, " * 9), replace(GREEDY, max_tokens=60), f"t{i}")
                    for i in range(5)
                ),
            )
            await wait_until_accepted(engine, 6)
        (tight,), *_ = await answering
        assert engine.stats().preemptions > 0
    assert tight.ids == alone.ids


async def test_several_answers_share_their_prompt(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=10, temperature=1.5, seed=3, n=4, ignore_eos=True)
    question = ask(small_model, "What is it, and why? " * 3, "red")
    with running_engine(small_model) as engine:
        answers = await collect(engine, question, rules, "four")
        stats = engine.stats()
        (first,) = await collect(engine, question, replace(rules, n=1), "one")
    assert len({answer.ids for answer in answers}) == 4
    assert first.ids == answers[0].ids
    assert stats.prefill_tokens < len(question.token_ids) + 3 * 17
    (last,) = (answer for answer in answers if answer.usage is not None)
    assert last.usage is not None
    assert last.usage.completion_tokens == 40
    assert last.usage.prompt_tokens == len(question.token_ids)


# Counters.


async def test_a_burst_takes_few_steps(small_model: Any) -> None:
    """32 requests, 1,024 tokens in total, 16 running slots; in order of arrival 90 steps is the minimum."""
    rng = random.Random(0)
    lengths = [rng.randint(8, 56) for _ in range(31)]
    lengths.append(1024 - sum(lengths))
    with running_engine(small_model, max_running=16, max_prefill_tokens=512) as engine:
        with step_gate(engine, 0):
            answering = asyncio.gather(
                *(
                    collect(
                        engine,
                        ask(small_model, words(random.Random(i)), "red"),
                        SamplingParams(max_tokens=length, ignore_eos=True),
                        str(i),
                    )
                    for i, length in enumerate(lengths)
                )
            )
            await wait_until_accepted(engine, 32)
        await answering
        stats = engine.stats()
    assert stats.generated_tokens == 1024
    assert stats.decode_steps <= 95


async def test_a_long_chat_computes_only_new_tokens(small_model: Any) -> None:
    """Eight turns about an image. The history contains the answers' own tokens, as with a trained model."""
    rules = SamplingParams(max_tokens=24, ignore_eos=True)
    question = make_prompt(small_model, [Turn("user", "Look at this picture, please. What is it?", 1)], ["red"])
    follow_up = small_model[1].tokenizer.encode_segment("###Human: And then?###")
    without_reuse = 0
    with running_engine(small_model) as engine:
        for i in range(8):
            without_reuse += len(question.token_ids)
            (answer,) = await collect(engine, question, rules, str(i))
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == len(question.token_ids)
            question = Prompt((*question.token_ids, *answer.ids, *follow_up), question.images)
        stats = engine.stats()
    assert stats.prefill_tokens + stats.cached_tokens == without_reuse
    assert stats.prefill_tokens <= 0.15 * without_reuse


async def test_a_repeated_image_is_not_decoded_again(small_model: Any) -> None:
    with running_engine(small_model) as engine:
        await collect(engine, ask(small_model, "What is it?", "red", "green"), GREEDY, "first")
        before = engine.stats()
        assert (before.image_decodes, before.image_encodes) == (2, 2)
        await asyncio.gather(
            *(
                collect(engine, ask(small_model, words(random.Random(i)), "green", "red"), GREEDY, str(i))
                for i in range(5)
            )
        )
        after = engine.stats()
    assert (after.image_decodes, after.image_encodes) == (2, 2)
    assert after.image_hits - before.image_hits == 10


async def test_an_image_of_many_requests_is_encoded_once(small_model: Any) -> None:
    with running_engine(small_model) as engine:
        await asyncio.gather(*(collect(engine, ask(small_model, f"{i}?", "red"), GREEDY, str(i)) for i in range(9)))
        stats = engine.stats()
    assert (stats.image_decodes, stats.image_encodes) == (1, 1)


async def test_prompts_with_different_images_share_no_blocks(small_model: Any) -> None:
    """The prompts' token ids are equal; only the images differ."""
    questions = [ask(small_model, "What is it?", color) for color in ("red", "blue")]
    assert questions[0].token_ids == questions[1].token_ids
    with running_engine(small_model, block_size=4) as engine:
        for i, question in enumerate(questions * 2):
            (answer,) = await collect(engine, question, GREEDY, str(i))
            assert list(answer.ids) == reference_ids(small_model, question, GREEDY)


async def test_evicted_features_and_blocks_change_no_answer(small_model: Any) -> None:
    rng = random.Random(2)
    with running_engine(small_model, num_blocks=30, block_size=4, image_cache_bytes=0) as engine:
        for i in range(12):
            question = ask(small_model, words(rng, 3), rng.choice(COLORS))
            (answer,) = await collect(engine, question, GREEDY, str(i))
            assert list(answer.ids) == reference_ids(small_model, question, GREEDY)


def test_stats_report_every_counter(small_model: Any) -> None:
    engine = Engine(*small_model, EngineSettings())
    names = [field.name for field in fields(EngineCounters)]
    for value, name in enumerate(names, start=100):
        setattr(engine._counters, name, value)
    assert [getattr(engine.stats(), name) for name in names] == list(range(100, 100 + len(names)))
    engine.shutdown()


# Behavior towards callers.


async def test_abort_frees_resources_and_ends_the_stream(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=400, ignore_eos=True)
    with running_engine(small_model) as engine:
        answers: list[CollectedAnswer] = []

        async def consume() -> None:
            answers.extend(await collect(engine, ask(small_model, "What?", "red"), rules, "long"))

        with step_gate(engine) as gate:
            consuming = asyncio.create_task(consume())
            await gate.wait_until_exhausted()
            steps = engine.stats().steps
            engine.abort("long")
            engine.abort("unknown")
        await asyncio.wait_for(consuming, 60)
        await wait_until_idle(engine)
        stats = engine.stats()
        assert (stats.running, stats.blocks_held, stats.aborted) == (0, 0, 1)
        assert stats.steps == steps + 1  # the step in progress was the last
    assert answers[0].finish_reason == "abort"
    assert answers[0].usage is not None
    assert answers[0].usage.completion_tokens == len(answers[0].ids) < 400


async def test_an_abort_during_image_decoding_takes_effect(small_model: Any, monkeypatch: Any) -> None:
    rules = SamplingParams(max_tokens=400, ignore_eos=True)
    with running_engine(small_model) as engine:
        started = asyncio.Event()
        proceed = asyncio.Event()
        resolve = engine._images.resolve

        async def slow_resolve(images: Any) -> Any:
            started.set()
            await proceed.wait()
            return await resolve(images)

        with step_gate(engine) as gate:
            # Another request's step is in progress, so that the engine finds request and abort in its inbox together.
            other = asyncio.create_task(collect(engine, ask(small_model), rules, "other"))
            await gate.wait_until_exhausted()
            monkeypatch.setattr(engine._images, "resolve", slow_resolve)
            task = asyncio.create_task(collect(engine, ask(small_model, "What?", "red"), rules, "early"))
            await started.wait()
            engine.abort("early")
            proceed.set()
            await wait_until_accepted(engine, 2)
            engine.abort("other")
        (answer,) = await asyncio.wait_for(task, 60)
        await other
        assert answer.finish_reason == "abort"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 0
        await wait_until_idle(engine)
        assert (engine.stats().blocks_held, engine.stats().accepted, engine._preparing) == (0, 0, {})


async def test_closing_the_iterator_frees_the_running_slot(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=400, ignore_eos=True, n=3)
    with running_engine(small_model) as engine:
        deltas = engine.generate(ask(small_model), rules, request_id="closed")
        with step_gate(engine):
            await anext(deltas)
            await deltas.aclose()  # type: ignore[attr-defined]
        await wait_until_idle(engine)
        assert (engine.stats().blocks_held, engine.stats().aborted) == (0, 1)
        # The id can be used again, and the abort of the closed stream doesn't affect the new request.
        (answer,) = await collect(engine, ask(small_model), GREEDY, "closed")
        assert answer.finish_reason in ("stop", "length")


async def test_cancellation_during_decoding_frees_capacity(small_model: Any, monkeypatch: Any) -> None:
    with running_engine(small_model, max_running=1, max_waiting=0) as engine:
        never = asyncio.get_running_loop().create_future()

        async def stuck(_: Any) -> Any:
            return await never

        with monkeypatch.context() as patch:
            patch.setattr(engine._images, "resolve", stuck)
            task = asyncio.create_task(collect(engine, ask(small_model, "What?", "red"), GREEDY, "stuck"))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await collect(engine, ask(small_model), GREEDY, "too many")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await collect(engine, ask(small_model), GREEDY, "free"))[0].finish_reason


async def test_a_request_id_in_use_is_rejected(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=60, ignore_eos=True)
    with running_engine(small_model) as engine:
        with step_gate(engine) as gate:
            first = asyncio.create_task(collect(engine, ask(small_model), rules, "same"))
            await gate.wait_until_exhausted()
            second = asyncio.create_task(collect(engine, ask(small_model), GREEDY, "same"))
            await wait_until_accepted(engine, 2)
        with pytest.raises(InvalidRequest, match="id is in progress"):
            await second
        assert len((await first)[0].ids) == 60
        assert engine.stats().accepted == 0


async def test_a_full_queue_rejects_with_the_expected_wait(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=100, ignore_eos=True)
    with running_engine(small_model, max_running=2, max_waiting=1) as engine:
        with step_gate(engine):
            tasks = [asyncio.create_task(collect(engine, ask(small_model), rules, str(i))) for i in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught:
                await collect(engine, ask(small_model), rules, "one more")
        assert caught.value.retry_after > 0
        assert all(answers[0].finish_reason == "length" for answers in await asyncio.gather(*tasks))
        await collect(engine, ask(small_model), GREEDY, "accepted")


async def test_a_queued_request_starts_with_its_position(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.engine.engine._QUEUE_UPDATE_S", 600.0)  # one position only
    rules = SamplingParams(max_tokens=50, ignore_eos=True)
    with running_engine(small_model, max_running=1) as engine:
        second = engine.generate(ask(small_model), rules, request_id="second")
        with step_gate(engine):
            task = asyncio.create_task(collect(engine, ask(small_model), rules, "first"))
            await asyncio.sleep(0)
            deltas = [await anext(second)]
        deltas += [delta async for delta in second]
        await task
    assert deltas[0].queue_position == 1
    assert deltas[0].expected_wait_s is not None
    assert deltas[0].expected_wait_s > 0
    assert deltas[0].text == ""
    assert deltas[1].queue_position is None
    timings = deltas[-1].timings
    assert timings is not None
    assert 0 < timings.queue_s < timings.ttft_s < timings.total_s


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda good: Prompt(()), InvalidRequest),
        (lambda good: Prompt((1, -1)), InvalidRequest),
        (lambda good: Prompt((1, 513)), InvalidRequest),  # 512 is the image token and the largest id
        (lambda good: Prompt(good.token_ids), InvalidRequest),
        (lambda good: Prompt(good.token_ids, good.images * 2), InvalidRequest),
        (lambda good: Prompt((5,) * 512), ContextLengthExceeded),
        (lambda good: Prompt(good.token_ids, (EncodedImage("0" * 64, b"\x89PNG\r\n\x1a\nno"),)), InvalidImage),
    ],
)
async def test_invalid_prompts_are_rejected(small_model: Any, make: Any, error: type[Exception]) -> None:
    good = ask(small_model, "What?", "red")
    with running_engine(small_model) as engine:
        with pytest.raises(error):
            await collect(engine, make(good), GREEDY, "bad")
        assert (await collect(engine, good, GREEDY, "good"))[0].finish_reason
        assert engine.stats().accepted == 0


async def test_an_answer_ends_at_the_context_length(small_model: Any) -> None:
    question = Prompt((5,) * 500)
    with running_engine(small_model) as engine:
        (answer,) = await collect(engine, question, SamplingParams(max_tokens=100, ignore_eos=True), "long")
    assert answer.finish_reason == "length"
    assert len(answer.ids) == 12


async def test_logprobs_arrive_with_their_tokens(small_model: Any) -> None:
    rules = SamplingParams(max_tokens=12, logprobs=True, top_logprobs=20, temperature=1.0, seed=4, ignore_eos=True)
    logprobs: list[Any] = []
    token_ids = 0
    with running_engine(small_model) as engine:
        async for delta in engine.generate(ask(small_model), rules, request_id="r"):
            logprobs += delta.logprobs
            token_ids += len(delta.token_ids)
            assert len(logprobs) <= token_ids, "a token whose text is held back is reported with its text"
    assert len(logprobs) == token_ids == 12
    assert all(entry.logprob <= entry.top[0][1] <= 0 for entry in logprobs)
    assert all(len(entry.top) == 20 for entry in logprobs)


async def test_images_are_identified_by_their_bytes(small_model: Any) -> None:
    assert len({image.digest for image in IMAGES.values()}) == len(IMAGES)
