"""The HTTP application over a real engine with a small model, on loopback, without Ray."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from processes import free_port

from minigpt4_serve.engine import Engine
from minigpt4_serve.serving.chat import ChatService
from minigpt4_serve.serving.routes import create_app
from minigpt4_serve.settings import ServeSettings


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
