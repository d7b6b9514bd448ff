"""The classes that Ray Serve runs as replicas: engines with a model, and HTTP processes without one.

Libraries are imported in the constructors: importing this module, as the deploying process does, imports no torch, and
only engines ever do.
"""

import gc
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.server.local_engine import load_engine, loading
from minigpt4_serve.server.logs import configure_logging
from minigpt4_serve.server.ray.loopback import bind_replica_to_loopback
from minigpt4_serve.server.ray.startup_errors import report_startup_error
from minigpt4_serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
    from minigpt4_serve.server.http.server import HttpServer

__all__ = ["EngineReplica", "Ingress"]

_RESPONSE_GRACE_S = 3.0  # for an answer that ends with an error at its deadline
_NICENESS = 10  # of an engine on CPUs: a tenth of an HTTP process's share


def _lower_priority() -> None:
    """Let HTTP processes run first where an engine computes on CPUs: they need little, and every request needs them."""
    for folder in Path("/proc/self/task").glob("*"):  # on Linux each thread has its own niceness
        thread = int(folder.name)
        with suppress(OSError):  # it may have ended
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


class EngineReplica:
    """A model and its engine, one per GPU. It is ready once it has answered a warm-up request.

    Args:
        log_path: see ``build_application``.
    """

    async def __init__(self, settings: ServeSettings, log_path: str | None = None) -> None:  # type: ignore[misc]
        configure_logging(settings.log_level, settings.log_format, log_path)
        bind_replica_to_loopback()
        with report_startup_error(), loading():
            from minigpt4_serve.server.ray.metrics import EngineMeter
            from minigpt4_serve.weights.load import resolve_device

            if resolve_device(settings.model.device).type == "cpu":
                _lower_priority()  # at once: loading would compete with replicas that finish their answers
            self._engine, service = load_engine(settings)
        self._meter = EngineMeter()
        await service.warm_up()

    async def generate(
        self, prompt: "Prompt", sampling: "SamplingParams", request_id: str
    ) -> "AsyncIterator[list[Delta | MiniGPT4Error]]":
        """The engine's deltas. A ``MiniGPT4Error`` is yielded, not raised: Ray would wrap it and fill its log."""
        try:
            async for delta in self._engine.generate(prompt, sampling, request_id=request_id):
                yield [delta]
        except MiniGPT4Error as error:
            yield [error]

    def describe(self) -> dict[str, Any]:
        """What an HTTP process needs to know of the engine. Raises ``EngineFailed`` if it is unhealthy."""
        self._engine.check_health()
        return {"context_length": self._engine.context_length}

    def record_routing_stats(self) -> dict[str, Any]:
        """``EngineStats`` and ``reported_at``, the time of the report in Unix seconds.

        Ray calls it every few seconds and passes the result to all processes that route requests here.
        """
        reported_at = time.time()
        stats = asdict(self._engine.stats())
        self._meter.update(stats)
        return {**stats, "reported_at": reported_at}

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        self._engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()


def _favor_latency() -> None:
    """Let the event loop get the interpreter soon: every new connection waits for it."""
    sys.setswitchinterval(0.0005)  # threads validate images; Python lets each of them run ten times as long
    gc.set_threshold(10_000)  # as in Ray's own proxy, which this process replaces; Ray freezes what was loaded


class Ingress:
    """HTTP, validation of images and tokenization, on CPUs. It outlives the engines that it calls.

    Args:
        socket_path, log_path: see ``build_application``.
    """

    _server: "HttpServer | None" = None

    async def __init__(  # type: ignore[misc]
        self,
        settings: ServeSettings,
        engines: "DeploymentHandle[Any]",
        socket_path: str | None = None,
        log_path: str | None = None,
    ) -> None:
        configure_logging(settings.log_level, settings.log_format, log_path)
        bind_replica_to_loopback()
        with report_startup_error(), loading():
            from minigpt4_serve.model_folder import read_generation_defaults, read_prompt_encoder
            from minigpt4_serve.server.http.chat_service import ChatService
            from minigpt4_serve.server.http.routes import create_app
            from minigpt4_serve.server.ray.engine_client import RayEngineClient
            from minigpt4_serve.server.ray.metrics import HttpMeter
            from minigpt4_serve.server.ray.metrics_reader import read_metrics
            from minigpt4_serve.server.ray.shared_quotas import SharedQuotas

            encoder = read_prompt_encoder(settings.model.path)
            defaults = read_generation_defaults(settings.model.path)
        described = await engines.describe.remote()
        folder = Path(socket_path).parent if socket_path is not None else None
        engine = RayEngineClient(engines, settings.engine, context_length=described["context_length"], folder=folder)
        service = ChatService(encoder, defaults, engine, settings)
        await service.warm_up()
        quotas = SharedQuotas() if settings.keys_file else None
        self._application = create_app(
            service, quotas, HttpMeter(), metrics=read_metrics, behind_proxy=socket_path is None
        )
        if socket_path is not None:
            _favor_latency()
            from minigpt4_serve.server.http.limited_protocol import TransportLimits
            from minigpt4_serve.server.http.server import HttpServer

            self._server = HttpServer(
                self._application,
                socket_path,
                drain_s=settings.scale.drain_s,
                keep_alive_s=settings.keep_alive_s,
                limits=TransportLimits(response_s=settings.max_request_s + _RESPONSE_GRACE_S),
            )
            self._server.start()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        return self._application

    async def __del__(self) -> None:
        """Ray calls this when the process is to be replaced, and awaits it."""
        if self._server is not None:
            await self._server.retire()
