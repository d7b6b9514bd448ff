"""Who waits hears of it, and who streams in a crowd gets larger pieces of the same answer."""

import asyncio
from typing import Any

import pytest
from engine_driving import collect, few_steps, idle, prompt, running

from minigpt4_serve.errors import Overloaded
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams

RULES = SamplingParams(max_tokens=30, ignore_eos=True)


async def test_pieces_grow_and_the_answer_stays(small_model: Any) -> None:
    asked = prompt(small_model, [Turn("user", "Hello")])
    with running(small_model, max_pieces_per_s=10**9) as engine:
        (small,) = await collect(engine, asked, RULES, "small")
    monkey = pytest.MonkeyPatch()
    with running(small_model, max_pieces_per_s=1) as engine, monkey.context() as patch:
        patch.setattr("minigpt4_serve.engine.outputs._MAX_HOLD_S", 60.0)  # a piece a second, for one answer
        (large,) = await collect(engine, asked, RULES, "large")
    assert (large.text, large.ids, large.usage) == (small.text, small.ids, small.usage)
    assert len(small.ids) == 30
    assert large.deltas <= small.deltas / 2


async def test_no_text_is_held_for_long(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompt(small_model, [Turn("user", "Hello")])
    monkeypatch.setattr("minigpt4_serve.engine.outputs._MAX_HOLD_S", 0.0)
    with running(small_model, max_pieces_per_s=1) as engine:
        (answer,) = await collect(engine, asked, RULES, "one")
    assert answer.deltas > 15


async def test_who_waits_hears_of_its_place_again_and_again(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.engine.engine._QUEUE_UPDATE_S", 0.005)
    asked = prompt(small_model, [Turn("user", "Hello")])
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    places: dict[str, list[int]] = {name: [] for name in ("first", "second", "third")}
    waits: list[tuple[int, float]] = []

    async def follow(name: str) -> None:
        async for delta in engine.generate(asked, long, request_id=name):
            if delta.queue_position is not None:
                assert delta.text == ""
                assert delta.expected_wait_s is not None
                places[name].append(delta.queue_position)
                waits.append((delta.queue_position, delta.expected_wait_s))

    async def hear(name: str, place: int) -> None:
        while places[name][-2:] != [place] * 2:
            await asyncio.sleep(0.002)

    with running(small_model, max_running=1, max_waiting=4) as engine:
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            with few_steps(engine) as rations:
                group.create_task(follow("first"))
                await rations.used_up()
                for name in ("second", "third"):  # they come during a step: the engine's thread hasn't seen them yet
                    group.create_task(follow(name))
                await hear("second", 1)
                await hear("third", 2)
                rations.allow(long.max_tokens)  # now the second one is answered
                await hear("third", 1)
        await idle(engine)
    assert places["first"] == []
    assert places["second"] == [1] * len(places["second"])
    # Nobody is ever put back in the line.
    assert places["third"] == sorted(places["third"], reverse=True)
    assert places["third"][0] == 2
    assert places["third"][-1] == 1
    assert all(wait > 0 for _, wait in waits)


async def test_room_is_known_before_anything_is_asked(small_model: Any) -> None:
    asked = prompt(small_model, [Turn("user", "Hello")])
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    with running(small_model, max_running=1, max_waiting=1) as engine:
        engine.check_capacity()
        engine.check_capacity(1)
        with pytest.raises(Overloaded):
            engine.check_capacity(2)
        first, second = (engine.generate(asked, long, request_id=name) for name in ("first", "second"))
        with few_steps(engine):
            await anext(first)
            engine.check_capacity()
            await anext(second)
            with pytest.raises(Overloaded) as refused:
                engine.check_capacity()
            assert refused.value.retry_after > 0
            await first.aclose()  # type: ignore[attr-defined]
            await second.aclose()  # type: ignore[attr-defined]
        await idle(engine)
        engine.check_capacity()
