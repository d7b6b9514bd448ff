"""The HTTP application over a real engine with a small model, on loopback, without Ray."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import engine_driving
import httpx
import uvicorn

from minigpt4_serve.engine import Engine, EngineStats
from minigpt4_serve.server.engine_client import LocalEngineClient
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.model_folder import GenerationDefaults
from minigpt4_serve.settings import ServeSettings


def local_engine(service: ChatService) -> Engine:
    """The engine behind a service that ``serving`` started."""
    assert isinstance(service.engine, LocalEngineClient)
    return service.engine.engine


@contextmanager
def few_steps(service: ChatService) -> Iterator[None]:
    """As ``engine_driving.step_gate``. Ask for greedy answers: what is sampled may meet a stop string in any step."""
    with engine_driving.step_gate(local_engine(service)):
        yield


def wait_until_abort_is_sent(service: ChatService) -> None:
    """Wait until the client's disconnect has reached the engine's inbox or the engine is idle."""
    engine = local_engine(service)
    deadline = time.monotonic() + 60
    while engine._inbox.empty() and engine.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def settled(service: ChatService) -> EngineStats:
    """Statistics once nothing runs, waits or is held any more."""
    engine = local_engine(service)
    deadline = time.monotonic() + 60
    while (stats := engine.stats()).running or stats.waiting or stats.blocks_held or stats.accepted:
        assert time.monotonic() < deadline, stats
        time.sleep(0.005)
    return stats


@contextmanager
def serving(small_model: Any, **settings: Any) -> Iterator[tuple[httpx.Client, ChatService]]:
    """(client, service) of a server with the model on loopback; ``settings`` are ServeSettings'."""
    model, processor = small_model
    chosen = ServeSettings(**{"model_name": "small", **settings})
    engine = Engine(model, processor, chosen.engine)
    engine.start()
    service = ChatService(processor.encoder, GenerationDefaults(), LocalEngineClient(engine), chosen)
    listening = socket.create_server(("127.0.0.1", 0))
    # A connection stays open for as long as a test may pause: none is closed under a question.
    server = uvicorn.Server(uvicorn.Config(create_app(service), timeout_keep_alive=600, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=120) as client:
            yield client, service
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        engine.shutdown()
