"""Delivery of outputs: one call into each event loop per flush, and longer deltas while many answers are generated."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from engine_driving import collect, make_prompt, running_engine

from minigpt4_serve.engine.outputs import OutputDispatcher, OutputStream
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import Delta, SamplingParams

RULES = SamplingParams(max_tokens=30, ignore_eos=True)


async def test_a_flush_calls_each_event_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    calls = Mock(side_effect=loop.call_soon_threadsafe)
    first = OutputStream()
    second = OutputStream()
    dispatcher = OutputDispatcher(max_deltas_per_s=500)
    deltas = [Delta(text=str(i)) for i in range(4)]
    for i, delta in enumerate(deltas):
        dispatcher.add(first if i % 2 == 0 else second, delta)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", calls)
        await asyncio.to_thread(dispatcher.flush)
        await asyncio.to_thread(dispatcher.flush)
    assert [await first.get(), await first.get()] == [deltas[0], deltas[2]]
    assert [await second.get(), await second.get()] == [deltas[1], deltas[3]]
    delivered = [call for call in calls.call_args_list if call.args[0].__name__ == "_deliver"]
    assert len(delivered) == 1, "nothing is pending at the second flush"


async def test_a_wait_that_times_out_loses_no_output() -> None:
    stream = OutputStream()
    assert await stream.get(within_s=0.001) is None
    stream.put(Delta(text="late"))
    assert await stream.get(within_s=60) == Delta(text="late")


async def test_a_closed_loop_keeps_no_other_loop_waiting() -> None:
    async def make_stream() -> OutputStream:
        return OutputStream()

    closed = asyncio.new_event_loop()
    orphan = await asyncio.to_thread(closed.run_until_complete, make_stream())
    closed.close()
    stream = OutputStream()
    dispatcher = OutputDispatcher(max_deltas_per_s=500)
    dispatcher.add(orphan, Delta(text="lost"))
    dispatcher.add(stream, Delta(text="delivered"))
    dispatcher.flush()
    assert await stream.get(within_s=60) == Delta(text="delivered")


def test_more_answers_get_longer_deltas() -> None:
    dispatcher = OutputDispatcher(max_deltas_per_s=500)
    assert dispatcher.min_interval(1) == pytest.approx(0.002)
    assert dispatcher.min_interval(10) == pytest.approx(0.02)
    assert dispatcher.min_interval(10_000) == 0.05, "text is held back for 50 ms at most"


async def test_longer_deltas_hold_the_same_answer(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = make_prompt(small_model, [Turn("user", "Hello")])
    with running_engine(small_model, max_pieces_per_s=10**9) as engine:
        (short,) = await collect(engine, asked, RULES, "short")
    with running_engine(small_model, max_pieces_per_s=1) as engine, monkeypatch.context() as patch:
        patch.setattr("minigpt4_serve.engine.outputs._MAX_HOLD_S", 60.0)  # one delta a second for one answer
        (long,) = await collect(engine, asked, RULES, "long")
    assert (long.text, long.ids, long.usage) == (short.text, short.ids, short.usage)
    assert len(short.ids) == 30
    assert long.deltas <= short.deltas / 2


async def test_no_text_is_held_back_for_long(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = make_prompt(small_model, [Turn("user", "Hello")])
    monkeypatch.setattr("minigpt4_serve.engine.outputs._MAX_HOLD_S", 0.0)
    with running_engine(small_model, max_pieces_per_s=1) as engine:
        (answer,) = await collect(engine, asked, RULES, "one")
    assert answer.deltas > 15
