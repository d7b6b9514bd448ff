"""The engine's thread dies, hangs or is told to go: nobody waits for ever."""

import asyncio
import threading
from typing import Any

import pytest
from engine_driving import collect, few_steps, prompt, running

from minigpt4_serve.engine import Engine
from minigpt4_serve.errors import EngineFailed, InvalidRequest
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams
from minigpt4_serve.settings import EngineSettings

LONG = SamplingParams(max_tokens=300, ignore_eos=True)

# What dies in a test is logged with its traceback; that is wanted.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.mark.parametrize("where", ["_runner.step", "_runner.encode", "_scheduler.schedule", "_tokenizer.decode_ids"])
async def test_death_of_the_thread_fails_every_request_at_once(
    small_model: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a driver's secret words")

    asked = prompt(small_model, [Turn("user", "What?", 1)], ["red"])
    with running(small_model, max_running=2) as engine:
        owner, name = where.split(".")
        monkeypatch.setattr(getattr(engine, owner), name, broken)
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(
                *(collect(engine, asked, LONG, str(i)) for i in range(5)), return_exceptions=True
            )
            assert all(isinstance(outcome, EngineFailed) for outcome in outcomes), outcomes
            assert all("secret" not in str(outcome) for outcome in outcomes)
            with pytest.raises(EngineFailed):
                engine.check_health()
            with pytest.raises(EngineFailed):
                await collect(engine, asked, LONG, "late")


async def test_shutdown_ends_what_runs_and_what_waits(small_model: Any) -> None:
    asked = prompt(small_model, [Turn("user", "What?")])
    with running(small_model, max_running=1) as engine:
        with few_steps(engine) as rations:
            tasks = [asyncio.create_task(collect(engine, asked, LONG, str(i))) for i in range(3)]
            await rations.used_up()
            stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown))
            while not engine._stopping:
                await asyncio.sleep(0.001)
        await stopping
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, EngineFailed) for outcome in outcomes)
        engine.shutdown()  # twice does no harm
        assert not engine._thread.is_alive()


async def test_a_step_that_hangs_turns_the_health_check_red(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    asked = prompt(small_model, [Turn("user", "What?")])
    with running(small_model) as engine:
        step = engine._runner.step

        def stuck(*arguments: Any) -> Any:
            begun.set()
            assert go_on.wait(120)
            return step(*arguments)

        engine.check_health()
        monkeypatch.setattr(engine._runner, "step", stuck)
        task = asyncio.create_task(collect(engine, asked, SamplingParams(max_tokens=3), "r"))
        assert await asyncio.to_thread(begun.wait, 60)
        with (
            monkeypatch.context() as patch
        ):  # only now: other steps, too, take long while the machine does other things
            patch.setattr(engine, "_settings", EngineSettings(step_timeout_s=0.05))
            async with asyncio.timeout(60):
                while True:
                    try:
                        engine.check_health()
                    except EngineFailed:
                        break
                    await asyncio.sleep(0.01)
        go_on.set()
        await task
        engine.check_health()


async def test_an_engine_that_was_never_started_says_so(small_model: Any) -> None:
    engine = Engine(*small_model, EngineSettings())
    with pytest.raises(EngineFailed):
        await collect(engine, prompt(small_model, [Turn("user", "What?")]), LONG, "r")
    engine.shutdown()


def test_a_closed_event_loop_does_not_stop_the_others(small_model: Any) -> None:
    asked = prompt(small_model, [Turn("user", "What?")])

    async def leave_without_a_word(engine: Engine) -> None:
        # A task that is never awaited nor cancelled, in a loop that closes under it.
        deltas = engine.generate(asked, LONG, request_id="gone")
        await anext(deltas)
        strays.append(deltas)

    strays: list[Any] = []
    with running(small_model) as engine:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave_without_a_word(engine))
        loop.close()
        (answer,) = asyncio.run(collect(engine, asked, SamplingParams(max_tokens=5), "next"))
        assert answer.finish_reason
    strays.clear()


def test_an_llm_of_another_layout_is_refused() -> None:
    import torch
    from transformers import AutoConfig, Blip2VisionConfig

    from minigpt4_serve.engine.model_runner import ModelRunner
    from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration

    text = AutoConfig.for_model("gpt2", vocab_size=64, n_embd=16, n_layer=1, n_head=2)
    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    torch.manual_seed(0)
    model = MiniGPT4ForConditionalGeneration(
        MiniGPT4Config(vision_config=vision, text_config=text, patches_per_token=4)
    )
    with pytest.raises(InvalidRequest, match="architecture"):
        ModelRunner(model, EngineSettings())


def test_a_cache_without_room_is_refused(small_model: Any) -> None:
    with pytest.raises(InvalidRequest, match="no memory left"):
        Engine(*small_model, EngineSettings(kv_cache_bytes=10))
