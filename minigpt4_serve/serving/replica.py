"""One replica: a model, its engine and the HTTP application around them. Knows Ray's hooks, nothing of requests.

torch is loaded where the model is: importing this module, as the process that deploys it does, loads none of it.
"""

from typing import TYPE_CHECKING

from minigpt4_serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from minigpt4_serve.serving.chat import ChatService

__all__ = ["Replica", "load_service"]


def load_service(settings: ServeSettings) -> "ChatService":
    """Load the model and start its engine.

    Raises:
        WeightsError: the folder isn't a model that can be served.
    """
    from minigpt4_serve.engine import Engine
    from minigpt4_serve.serving.chat import ChatService
    from minigpt4_serve.weights.load import load_model

    model, processor = load_model(settings.model)
    engine = Engine(model, processor, settings.engine)
    engine.start()
    return ChatService(model, processor, engine, settings)


class Replica:
    """What Ray Serve runs. It counts as ready after it has answered a warm-up request."""

    async def __init__(self, settings: ServeSettings) -> None:  # type: ignore[misc]
        self._service = load_service(settings)
        await self._service.warm_up()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from minigpt4_serve.serving.routes import create_app
        from minigpt4_serve.serving.shared_quotas import SharedQuotas

        return create_app(self._service, SharedQuotas() if self._service.settings.keys_file else None)

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        self._service.engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.engine.shutdown()
