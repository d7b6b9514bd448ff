"""The engine thread fails, hangs or is shut down: every request ends."""

import asyncio
import threading
from typing import Any

import pytest
from engine_driving import collect, make_prompt, running_engine, step_gate

from minigpt4_serve.engine import Engine
from minigpt4_serve.errors import EngineFailed, InvalidRequest
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams
from minigpt4_serve.settings import EngineSettings

LONG = SamplingParams(max_tokens=300, ignore_eos=True)

# Failed threads log their traceback.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.mark.parametrize("where", ["_runner.step", "_runner.encode", "_scheduler.schedule", "_tokenizer.decode_ids"])
async def test_a_failed_engine_thread_fails_every_request(
    small_model: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the driver")

    asked = make_prompt(small_model, [Turn("user", "What?", 1)], ["red"])
    with running_engine(small_model, max_running=2) as engine:
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


async def test_shutdown_ends_running_and_waiting_requests(small_model: Any) -> None:
    asked = make_prompt(small_model, [Turn("user", "What?")])
    with running_engine(small_model, max_running=1) as engine:
        with step_gate(engine) as gate:
            tasks = [asyncio.create_task(collect(engine, asked, LONG, str(i))) for i in range(3)]
            await gate.wait_until_exhausted()
            stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown))
            while not engine._stopping:
                await asyncio.sleep(0.001)
        await stopping
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, EngineFailed) for outcome in outcomes)
        engine.shutdown()  # a second call has no effect
        assert not engine._thread.is_alive()


async def test_a_step_that_hangs_fails_the_health_check(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    proceed = threading.Event()
    asked = make_prompt(small_model, [Turn("user", "What?")])
    with running_engine(small_model) as engine:
        step = engine._runner.step

        def stuck(*arguments: Any) -> Any:
            started.set()
            assert proceed.wait(120)
            return step(*arguments)

        engine.check_health()
        monkeypatch.setattr(engine._runner, "step", stuck)
        task = asyncio.create_task(collect(engine, asked, SamplingParams(max_tokens=3), "r"))
        assert await asyncio.to_thread(started.wait, 60)
        with monkeypatch.context() as patch:  # only now: on a busy machine other steps take long, too
            patch.setattr(engine, "_settings", EngineSettings(step_timeout_s=0.05))
            async with asyncio.timeout(60):
                while True:
                    try:
                        engine.check_health()
                    except EngineFailed:
                        break
                    await asyncio.sleep(0.01)
        proceed.set()
        await task
        engine.check_health()


async def test_an_engine_that_was_not_started_rejects_requests(small_model: Any) -> None:
    engine = Engine(*small_model, EngineSettings())
    with pytest.raises(EngineFailed):
        await collect(engine, make_prompt(small_model, [Turn("user", "What?")]), LONG, "r")
    engine.shutdown()


def test_a_closed_event_loop_leaves_others_working(small_model: Any) -> None:
    asked = make_prompt(small_model, [Turn("user", "What?")])

    async def abandon(engine: Engine) -> None:
        # The generator is neither exhausted nor closed before its loop closes.
        deltas = engine.generate(asked, LONG, request_id="abandoned")
        await anext(deltas)
        abandoned.append(deltas)

    abandoned: list[Any] = []
    with running_engine(small_model) as engine:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(abandon(engine))
        loop.close()
        (answer,) = asyncio.run(collect(engine, asked, SamplingParams(max_tokens=5), "next"))
        assert answer.finish_reason
    abandoned.clear()


def test_an_llm_of_another_architecture_is_rejected() -> None:
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


def test_a_cache_without_memory_is_rejected(small_model: Any) -> None:
    with pytest.raises(InvalidRequest, match="no memory left"):
        Engine(*small_model, EngineSettings(kv_cache_bytes=10))
