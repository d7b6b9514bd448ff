"""Admission: capacity, queue positions and expected waits. Only the engine thread reads the scheduler's queue."""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from engine_driving import collect, make_prompt, running_engine, step_gate, wait_until_idle

from minigpt4_serve.engine.admission import Admission
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.errors import Overloaded
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams

LONG = SamplingParams(max_tokens=200, ignore_eos=True)


def test_running_slots_fill_before_the_queue() -> None:
    admission = Admission(max_running=2, max_waiting=2)
    assert [admission.accept(1) for _ in range(4)] == [0, 0, 1, 2]
    with pytest.raises(Overloaded):
        admission.accept(1)
    assert admission.accepted == 4, "a rejected request counts for nothing"
    admission.release(2)
    assert admission.accept(1) == 1


def test_an_idle_engine_accepts_any_request() -> None:
    admission = Admission(max_running=2, max_waiting=0)
    assert admission.accept(16) == 14
    with pytest.raises(Overloaded):
        admission.accept(1)


def test_expected_waits_follow_the_mean_duration() -> None:
    admission = Admission(max_running=4, max_waiting=0)
    assert admission.seconds_per_request == 1.0
    for seconds in (3.0, 5.0):
        admission.record_completion(seconds)
    assert admission.seconds_per_request == pytest.approx(4.0)
    assert admission.expected_wait(6) == pytest.approx(6.0)
    for _ in range(60):
        admission.record_completion(20.0)
    assert admission.seconds_per_request == pytest.approx(20.0, rel=0.05), "old requests lose their weight"


def test_queue_positions_count_requests_not_sequences() -> None:
    admission = Admission(max_running=1, max_waiting=9)
    admission.publish_queue(["a", "a", "b", "a", "c"])
    assert [admission.queue_position(name) for name in "abcd"] == [1, 2, 3, None]


def test_a_published_queue_is_a_snapshot() -> None:
    admission = Admission(max_running=1, max_waiting=9)
    queue = ["a", "b"]
    admission.publish_queue(queue)
    queue.reverse()
    assert [admission.queue_position(name) for name in "ab"] == [1, 2]


class OwnedQueue(deque[Sequence]):
    """A queue that only one thread may read or change. Its length can be read by all."""

    def __init__(self, owner: threading.Thread) -> None:
        super().__init__()
        self._owner = owner

    def _check(self) -> None:
        assert threading.current_thread() is self._owner, "another thread reads the engine thread's queue"

    def __iter__(self) -> Iterator[Sequence]:
        self._check()
        return super().__iter__()

    def __contains__(self, sequence: object) -> bool:
        self._check()
        return super().__contains__(sequence)

    def __getitem__(self, index: Any) -> Any:
        self._check()
        return super().__getitem__(index)

    def copy(self) -> Any:
        self._check()
        return super().copy()


async def test_positions_are_updated_while_requests_wait(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.engine.engine._QUEUE_UPDATE_S", 0.005)
    asked = make_prompt(small_model, [Turn("user", "Hello")])
    positions: dict[str, list[int]] = {name: [] for name in ("first", "second", "third")}
    waits: list[float] = []

    async def follow(name: str) -> None:
        async for delta in engine.generate(asked, LONG, request_id=name):
            if delta.queue_position is not None:
                assert delta.text == ""
                assert delta.expected_wait_s is not None
                positions[name].append(delta.queue_position)
                waits.append(delta.expected_wait_s)

    async def wait_for_position(name: str, position: int) -> None:
        while positions[name][-2:] != [position] * 2:
            await asyncio.sleep(0.002)

    with running_engine(small_model, max_running=1, max_waiting=4) as engine:
        engine._scheduler.waiting = OwnedQueue(engine._thread)
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            with step_gate(engine) as gate:
                group.create_task(follow("first"))
                await gate.wait_until_exhausted()
                for name in ("second", "third"):  # during a step: the engine thread hasn't added them yet
                    group.create_task(follow(name))
                await wait_for_position("second", 1)
                await wait_for_position("third", 2)
                gate.allow(LONG.max_tokens)  # now "second" gets the running slot
                await wait_for_position("third", 1)
        await wait_until_idle(engine)
    assert positions["first"] == []
    assert positions["second"] == [1] * len(positions["second"])
    assert positions["third"] == sorted(positions["third"], reverse=True), "a request moved back in the queue"
    assert positions["third"][0] == 2
    assert positions["third"][-1] == 1
    assert all(wait > 0 for wait in waits)


async def test_only_the_engine_thread_reads_its_queue(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.engine.engine._QUEUE_UPDATE_S", 0.001)
    asked = make_prompt(small_model, [Turn("user", "Hello")])
    rules = SamplingParams(max_tokens=12, ignore_eos=True)
    with running_engine(small_model, max_running=2, max_waiting=40) as engine:
        engine._scheduler.waiting = OwnedQueue(engine._thread)
        answers = asyncio.gather(*(collect(engine, asked, rules, str(i)) for i in range(40)))
        for i in range(0, 40, 8):
            await asyncio.sleep(0.01)
            engine.abort(str(i))
            engine.stats()
            engine.check_capacity()
        assert all(answer.finish_reason for (answer,) in await answers)
        await wait_until_idle(engine)


async def test_capacity_is_checked_without_a_request(small_model: Any) -> None:
    asked = make_prompt(small_model, [Turn("user", "Hello")])
    with running_engine(small_model, max_running=1, max_waiting=1) as engine:
        engine.check_capacity()
        engine.check_capacity(1)
        with pytest.raises(Overloaded):
            engine.check_capacity(2)
        first, second = (engine.generate(asked, LONG, request_id=name) for name in ("first", "second"))
        with step_gate(engine):
            await anext(first)
            engine.check_capacity()
            await anext(second)
            with pytest.raises(Overloaded) as rejected:
                engine.check_capacity()
            assert rejected.value.retry_after > 0
            await first.aclose()  # type: ignore[attr-defined]
            await second.aclose()  # type: ignore[attr-defined]
        await wait_until_idle(engine)
        engine.check_capacity()
