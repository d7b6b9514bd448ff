"""Counters and gauges of one engine. Plain data."""

from dataclasses import dataclass

__all__ = ["EngineCounters", "EngineStats"]


@dataclass(slots=True)
class EngineCounters:
    """What the engine thread counts. Only that thread writes; a single field can be read from any thread."""

    requests: int = 0
    steps: int = 0
    decode_steps: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    image_encodes: int = 0
    aborted: int = 0


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and gauges.

    Attributes:
        running, waiting: sequences that the scheduler runs and queues.
        accepted: sequences not finished: running, waiting, or with images still being decoded.
        blocks_held, blocks_total: blocks of the KV cache.
        decode_steps: steps that sampled at least one token.
        prefill_tokens: prompt positions computed.
        cached_tokens: prompt positions found in the KV cache.
        image_hits: images whose features were in the image cache.
        seconds_per_request: running mean from running slot to end.
    """

    running: int
    waiting: int
    accepted: int
    blocks_held: int
    blocks_total: int
    requests: int = 0
    steps: int = 0
    decode_steps: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    image_decodes: int = 0
    image_encodes: int = 0
    image_hits: int = 0
    preemptions: int = 0
    aborted: int = 0
    seconds_per_request: float = 0.0
