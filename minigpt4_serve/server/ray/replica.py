"""What Ray Serve runs: replicas that hold a model, and those that speak HTTP. Knows Ray's hooks, nothing of requests.

torch is loaded where it is needed: importing this module, as the process that deploys it does, loads none of it.
"""

import atexit
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from minigpt4_serve.engine import Engine
    from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
    from minigpt4_serve.server.http.chat_service import ChatService
    from minigpt4_serve.server.http.server import HttpServer

__all__ = ["EngineReplica", "Ingress", "load_engine", "loading"]

_NICENESS = 10  # of an engine that computes on CPUs: a tenth of the share of a process that speaks HTTP


@contextmanager
def loading() -> Iterator[None]:
    """Suspend garbage collection while a process loads its libraries and its model: it takes a tenth of that time.

    Nearly all of it stays until the process ends, so later collections skip it, too (``gc.freeze``). At exit it is
    collected after all: libraries made with nanobind, such as Triton, print a list of the objects that outlive Python.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        if enabled:
            gc.enable()


def load_engine(settings: ServeSettings) -> "tuple[Engine, ChatService]":
    """Load the model, start its engine, and put a chat on it.

    Raises:
        WeightsError: the folder isn't a model that can be served.
    """
    from minigpt4_serve.engine import Engine
    from minigpt4_serve.server.http.chat_service import ChatService
    from minigpt4_serve.weights.load import load_model

    model, processor = load_model(settings.model)
    engine = Engine(model, processor, settings.engine)
    engine.start()
    return engine, ChatService(processor, model.generation_config, engine, settings)


def _step_back() -> None:
    """Who speaks HTTP goes first on CPUs that both want: it needs little, and every caller waits for it."""
    for folder in Path("/proc/self/task").glob("*"):  # on Linux each thread has a niceness of its own
        thread = int(folder.name)
        with suppress(OSError):  # it may be gone by now
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


class EngineReplica:
    """A model and its engine, one for each GPU. It counts as ready after it has answered a warm-up request."""

    async def __init__(self, settings: ServeSettings) -> None:  # type: ignore[misc]
        with loading():
            from minigpt4_serve.server.http.request_log import JsonLines
            from minigpt4_serve.server.metrics import EngineMeter
            from minigpt4_serve.weights.load import resolve_device

            JsonLines.install()
            if resolve_device(settings.model.device).type == "cpu":
                _step_back()  # at once: loading would take the CPUs from those who finish their answers meanwhile
            self._engine, service = load_engine(settings)
        self._meter = EngineMeter()
        await service.warm_up()

    async def generate(
        self, prompt: "Prompt", sampling: "SamplingParams", request_id: str
    ) -> "AsyncIterator[list[Delta | MiniGPT4Error]]":
        """The engine's pieces. Errors of ours are told, not raised: Ray would wrap them and fill its log."""
        try:
            async for delta in self._engine.generate(prompt, sampling, request_id=request_id):
                yield [delta]
        except MiniGPT4Error as error:
            yield [error]

    def describe(self) -> dict[str, Any]:
        """What the HTTP side must know of the engine."""
        self._engine.check_health()
        return {"context_length": self._engine.context_length}

    def record_routing_stats(self) -> dict[str, Any]:
        """``EngineStats`` and ``reported_at``, the time of the report in Unix seconds.

        Ray calls it every few seconds and passes the result to all processes that route requests here.
        """
        reported_at = time.time()
        stats = asdict(self._engine.stats())
        self._meter.note(stats)
        return {**stats, "reported_at": reported_at}

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        self._engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()


def _answer_promptly() -> None:
    """A new connection waits for the event loop, and the loop for the interpreter: nobody shall hold it for long."""
    sys.setswitchinterval(0.0005)  # threads check pictures; Python lets each of them go on for ten times as long
    gc.set_threshold(10_000)  # as in the proxy of Ray's whose place this process takes; Ray freezes what was loaded


class Ingress:
    """HTTP, pictures' checks and tokens, on CPUs; outlives the engines that it asks.

    Args:
        socket_path: where this machine's ``SharedSocket`` is handed out; without one Ray's proxies bring the requests.
    """

    _server: "HttpServer | None" = None

    async def __init__(  # type: ignore[misc]
        self, settings: ServeSettings, engines: "DeploymentHandle[Any]", socket_path: str | None = None
    ) -> None:
        with loading():
            from minigpt4_serve.server.http.chat_service import ChatService
            from minigpt4_serve.server.http.request_log import JsonLines
            from minigpt4_serve.server.http.routes import create_app
            from minigpt4_serve.server.metrics import HttpMeter
            from minigpt4_serve.server.ray.metrics_reader import read_metrics
            from minigpt4_serve.server.ray.remote_engine import RemoteEngine
            from minigpt4_serve.server.ray.shared_quotas import SharedQuotas
            from minigpt4_serve.weights.load import load_processor

            JsonLines.install()
            processor, rules = load_processor(settings.model.path)
        described = await engines.describe.remote()
        engine = RemoteEngine(engines, settings.engine, context_length=described["context_length"])
        service = ChatService(processor, rules, engine, settings)
        await service.warm_up()
        quotas = SharedQuotas() if settings.keys_file else None
        self._application = create_app(
            service, quotas, HttpMeter(), behind_proxy=socket_path is None, metrics=read_metrics
        )
        if socket_path is not None:
            _answer_promptly()
            from minigpt4_serve.server.http.server import HttpServer

            self._server = HttpServer(self._application, socket_path, drain_s=settings.scale.drain_s)
            self._server.start()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        return self._application

    async def __del__(self) -> None:
        """Ray calls this when the process is to be replaced, and waits for it."""
        if self._server is not None:
            await self._server.retire()
