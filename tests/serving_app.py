"""The HTTP application over a real engine with a small model, on loopback, without Ray."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from processes import free_port

from minigpt4_serve.engine import Engine
from minigpt4_serve.serving.chat import ChatService
from minigpt4_serve.serving.routes import create_app
from minigpt4_serve.settings import ServeSettings


@contextmanager
def few_steps(service: ChatService, steps: int = 30) -> Iterator[None]:
    """Until the end the engine makes so many steps and no more: a long answer has begun and can't be over.

    A test that instead hopes to be faster than four hundred tokens fails on a machine that others use.
    """
    engine = service.engine
    assert isinstance(engine, Engine)
    ration, runner, real = threading.Semaphore(steps), engine._runner, engine._runner.step

    def step(*given: Any) -> Any:
        assert ration.acquire(timeout=60)
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "step", step)
        try:
            yield
        finally:
            ration.release(100_000)


def wait_until_told(service: ChatService) -> None:
    """Until the engine's next step will hear that somebody left."""
    assert isinstance(service.engine, Engine)
    deadline = time.monotonic() + 20
    while service.engine._inbox.empty():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def serving(small_model: Any, **settings: Any) -> Iterator[tuple[httpx.Client, ChatService]]:
    """(client, service) of a server with the model on loopback; ``settings`` are ServeSettings'."""
    model, processor = small_model
    chosen = ServeSettings(**{"model_name": "small", **settings})
    engine = Engine(model, processor, chosen.engine)
    engine.start()
    service = ChatService(processor, model.generation_config, engine, chosen)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client, service
    finally:
        server.should_exit = True
        thread.join()
        engine.shutdown()
