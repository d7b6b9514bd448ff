"""Frozen settings of the model, the engine and the server: built once at the edge, passed down, never changed.

Knows nothing of torch, Ray or HTTP, so reading a configuration file is cheap. Unknown keys are refused: a misspelt
setting that silently does nothing is worse than an error.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TINY_MODEL", "EngineSettings", "ModelSettings", "ServeSettings"]

TINY_MODEL = Path(__file__).parent / "weights" / "tiny"
"""The embedded default model: trained by this project, a few megabytes, runs on any CPU."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Settings):
    """Which model to load and how."""

    path: Path = TINY_MODEL
    """A folder in Hugging Face layout, as ``minigpt4 convert`` writes it."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` …"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 on GPUs, float32 on CPUs."""


class EngineSettings(_Settings):
    """Sizes of the engine's queues, caches and steps."""


class ServeSettings(_Settings):
    """What ``minigpt4 serve`` needs to know; the same keys as in a configuration file."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    model_name: str | None = None
    """The name clients use; the model folder's name if not given."""
    max_images_per_request: int = Field(default=8, ge=1)
    max_image_bytes: int = Field(default=20 * 2**20, ge=1)
    """Largest picture, encoded, in bytes."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Largest picture, decoded, in pixels (width × height)."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
