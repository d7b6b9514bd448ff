"""How the HTTP side reaches an engine, in this process or in others. Imports neither torch nor Ray."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from minigpt4_serve.protocol import Delta, Prompt, SamplingParams

if TYPE_CHECKING:
    from minigpt4_serve.engine import Engine

__all__ = ["EngineClient", "LocalEngineClient"]


class EngineClient(Protocol):
    """One engine, or several that act as one."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together that the engine can hold."""

    def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncGenerator[Delta]:
        """The deltas of an answer. Closing the generator aborts the request.

        Raises:
            MiniGPT4Error: as ``Engine.generate``.
        """

    async def check_health(self) -> None:
        """Raise ``EngineFailed`` unless an engine answers."""

    async def check_capacity(self, ahead: int = 0) -> None:
        """Raise ``Overloaded`` if one more request, behind ``ahead`` others, is certain to be refused.

        It suspends nowhere: no other coroutine runs between the call and its result.
        """

    async def replicas(self) -> list[dict[str, Any]]:
        """``EngineStats`` of each engine as a dictionary, with its ``name``."""


class LocalEngineClient:
    """An engine in this process.

    Attributes:
        engine: the engine itself; started and shut down by its owner.
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine

    @property
    def context_length(self) -> int:
        """See ``EngineClient``."""
        return self.engine.context_length

    def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncGenerator[Delta]:
        """See ``EngineClient``."""
        return self.engine.generate(prompt, sampling, request_id=request_id)

    async def check_health(self) -> None:
        """See ``EngineClient``."""
        self.engine.check_health()

    async def check_capacity(self, ahead: int = 0) -> None:
        """See ``EngineClient``."""
        self.engine.check_capacity(ahead)

    async def replicas(self) -> list[dict[str, Any]]:
        """See ``EngineClient``."""
        return [{"name": "here", **asdict(self.engine.stats())}]
