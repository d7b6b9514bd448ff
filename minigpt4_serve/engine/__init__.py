"""The engine: continuous batching for MiniGPT-4 models. Imports neither Ray nor FastAPI."""

from minigpt4_serve.engine.engine import Engine
from minigpt4_serve.engine.stats import EngineStats
from minigpt4_serve.protocol import Delta, FinishReason, Prompt, SamplingParams, Timings, TokenLogprob, Usage

__all__ = [
    "Delta",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Prompt",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "Usage",
]
