"""Continuous batching for MiniGPT-4. Knows the model; knows nothing of Ray, HTTP or wire types."""

from minigpt4_serve.engine.engine import Engine, EngineStats
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
