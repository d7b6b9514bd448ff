"""Measurements of one way to answer: times, tokens, steps and cache hits. Runs nothing itself."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt4_serve.engine import EngineStats

__all__ = ["Measurement", "Throughput", "log_progress", "percentile", "percentiles_ms"]


@dataclass(kw_only=True)
class Throughput:
    """Generated tokens, and the time that they took.

    Attributes:
        seconds: wall time of all runs.
        cpu_seconds: of all processes that answer; steadier than the wall time on a shared machine.
        tokens: generated.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of wall time; 0 before the first run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_cpu_second(self) -> float:
        """Generated tokens per second of CPU time; 0 before the first run."""
        return self.tokens / self.cpu_seconds if self.cpu_seconds else 0.0


@dataclass
class Measurement(Throughput):
    """Counts and times of one way to answer.

    Attributes:
        ttft: seconds from each request's arrival to its first token.
        itl: seconds between tokens that follow each other in an answer.
        image_decode_seconds: time that the engine's requests spent on decoding images, summed over requests.
        unavailable: why it could not be measured here.
    """

    name: str
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    prefill_tokens: int = 0
    cached_tokens: int = 0
    image_hits: int = 0
    image_decode_seconds: float = 0.0
    decode_steps: int = 0
    unavailable: str | None = None

    def add_latencies(self, arrived: float, token_times: Sequence[float]) -> None:
        """Record one answer's latencies from the times of its arrival and of its tokens, in seconds."""
        if token_times:
            self.ttft.append(token_times[0] - arrived)
            self.itl += [after - before for before, after in itertools.pairwise(token_times)]

    def add_stats(self, before: EngineStats, after: EngineStats) -> None:
        """Add the differences between two snapshots of the engine's counters."""
        self.prefill_tokens += after.prefill_tokens - before.prefill_tokens
        self.cached_tokens += after.cached_tokens - before.cached_tokens
        self.image_hits += after.image_hits - before.image_hits
        self.decode_steps += after.decode_steps - before.decode_steps

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON; latencies as percentiles in milliseconds."""
        if self.unavailable is not None:
            return {"not_available": self.unavailable}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("ttft", "itl"):
            values |= percentiles_ms(name, values.pop(name), (50, 95, 99), digits=2)
        del values["name"], values["unavailable"]
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
        return {"tokens_per_s": round(self.tokens_per_second, 1), **rounded}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value at ``percent`` (0–100) by nearest rank; 0 if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def percentiles_ms(
    name: str, seconds: Sequence[float], percents: Sequence[int], *, digits: int = 1
) -> dict[str, float]:
    """Percentiles in milliseconds; the key of each is ``NAME_pPERCENT_ms``."""
    return {f"{name}_p{percent}_ms": round(1000 * percentile(seconds, percent), digits) for percent in percents}


def log_progress(text: str) -> None:
    """Print a line with the time to stderr."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
