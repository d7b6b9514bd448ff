"""What Ray Serve runs: replicas that hold a model, and those that speak HTTP. Knows Ray's hooks, nothing of requests.

torch is loaded where it is needed: importing this module, as the process that deploys it does, loads none of it.
"""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from minigpt4_serve.engine import Delta, Engine, Prompt, SamplingParams
    from minigpt4_serve.serving.chat import ChatService

__all__ = ["EngineReplica", "Ingress", "load_engine"]


def load_engine(settings: ServeSettings) -> "tuple[Engine, ChatService]":
    """Load the model, start its engine, and put a chat on it.

    Raises:
        WeightsError: the folder isn't a model that can be served.
    """
    from minigpt4_serve.engine import Engine
    from minigpt4_serve.serving.chat import ChatService
    from minigpt4_serve.weights.load import load_model

    model, processor = load_model(settings.model)
    engine = Engine(model, processor, settings.engine)
    engine.start()
    return engine, ChatService(processor, model.generation_config, engine, settings)


class EngineReplica:
    """A model and its engine, one for each GPU. It counts as ready after it has answered a warm-up request."""

    async def __init__(self, settings: ServeSettings) -> None:  # type: ignore[misc]
        from minigpt4_serve.serving.metrics import EngineMeter
        from minigpt4_serve.serving.sight import JsonLines

        JsonLines.install()
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
        """Ray asks every few seconds and hands it on to whoever routes requests here."""
        stats = asdict(self._engine.stats())
        self._meter.note(stats)
        return stats

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        self._engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()


class Ingress:
    """HTTP, pictures' checks and tokens, on CPUs; outlives the engines that it asks."""

    async def __init__(self, settings: ServeSettings, engines: "DeploymentHandle[Any]") -> None:  # type: ignore[misc]
        from minigpt4_serve.serving.chat import ChatService
        from minigpt4_serve.serving.remote_engine import RemoteEngine
        from minigpt4_serve.serving.sight import JsonLines
        from minigpt4_serve.weights.load import load_processor

        JsonLines.install()
        processor, rules = load_processor(settings.model.path)
        described = await engines.describe.remote()
        engine = RemoteEngine(engines, context_length=described["context_length"])
        self._service = ChatService(processor, rules, engine, settings)
        await self._service.warm_up()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from minigpt4_serve.serving.metrics import HttpMeter
        from minigpt4_serve.serving.routes import create_app
        from minigpt4_serve.serving.shared_quotas import SharedQuotas

        quotas = SharedQuotas() if self._service.settings.keys_file else None
        return create_app(self._service, quotas, HttpMeter())
