"""More requests than a server can answer: how fast refusals arrive, and how fast accepted answers start."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any

from tools.bench.http_requests import first_turns, send, send_chat
from tools.bench.measurement import percentiles_ms
from tools.bench.servers import ServerUnderTest

__all__ = ["OverloadResult", "measure_overload"]

_ANSWER_TOKENS = 32
_SECONDS = 8.0  # of each phase with a steady load
_LATE_REFUSAL_S = 0.1  # a refusal that takes longer is counted as late


@dataclass
class OverloadResult:
    """Outcomes of requests under more load than a server can answer, in seconds.

    Attributes:
        refusals: from each refused request to the first byte of its 429.
        ttft: of the accepted requests, without their wait for a running slot.
    """

    refusals: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)

    def summary(self, phase: str) -> dict[str, Any]:
        """Counts, and percentiles in milliseconds; the keys begin with ``phase``."""
        found: dict[str, Any] = {f"{phase}_answered": len(self.ttft)}
        if self.refusals:
            found[f"{phase}_refused"] = len(self.refusals)
            found |= percentiles_ms(f"{phase}_refused", self.refusals, (50, 99))
            found[f"{phase}_refused_late"] = sum(seconds > _LATE_REFUSAL_S for seconds in self.refusals)
        return found | percentiles_ms(f"{phase}_ttft", self.ttft, (50, 95))


def measure_overload(server: ServerUnderTest, tokens_per_second: float, factor: int) -> dict[str, Any]:
    """``factor`` times more than the server can answer: in one burst, and steadily.

    For comparison, the same with every running slot taken and an empty queue, and trivial requests that cost little
    more than their connections.
    """
    rate = tokens_per_second / _ANSWER_TOKENS
    burst = asyncio.run(send_burst(server, factor))
    saturated = asyncio.run(saturate(server, rate, _SECONDS))
    steady = asyncio.run(send_steadily(server, factor * rate, _SECONDS))
    trivial = asyncio.run(time_trivial_requests(server, len(burst.ttft) + len(burst.refusals)))
    return {
        **saturated.summary("saturated"),
        **steady.summary("overload"),
        **burst.summary("burst"),
        **percentiles_ms("trivial", trivial, (50, 99)),
    }


async def send_burst(server: ServerUnderTest, factor: int) -> OverloadResult:
    """Send ``factor`` times the server's capacity at the same moment."""
    result = OverloadResult()
    bodies = first_turns(factor * server.capacity, _ANSWER_TOKENS, seed=7)
    await asyncio.gather(*(send_one(server, body, result) for body in bodies))
    return result


async def saturate(server: ServerUnderTest, rate: float, seconds: float) -> OverloadResult:
    """Keep every running slot taken and the queue empty; ``rate`` is what the server answers per second."""
    result = OverloadResult()
    bodies = iter(first_turns(int(2 * seconds * rate) + server.running_slots, _ANSWER_TOKENS, seed=9))
    end = time.perf_counter() + seconds

    async def keep_slot_busy() -> None:
        while time.perf_counter() < end:
            await send_one(server, next(bodies), result)

    await asyncio.gather(*(keep_slot_busy() for _ in range(server.running_slots)))
    return result


async def send_steadily(server: ServerUnderTest, rate: float, seconds: float) -> OverloadResult:
    """Send ``rate`` requests per second."""
    result = OverloadResult()
    count = int(rate * seconds)
    bodies = first_turns(count, _ANSWER_TOKENS, seed=8)
    await asyncio.gather(*(send_one(server, body, result, seconds * i / count) for i, body in enumerate(bodies)))
    return result


async def send_one(server: ServerUnderTest, body: bytes, result: OverloadResult, delay: float = 0.0) -> None:
    """Send a request and read its refusal, or its answer to the end.

    Raises:
        SystemExit: neither arrived; with the end of the response.
    """
    await asyncio.sleep(delay)
    began = time.perf_counter()
    received = b""
    ttft = None
    async with send_chat(server.port, body) as response:
        while b"data: [DONE]" not in received:
            chunk = await response.read(65_536)
            seconds = time.perf_counter() - began
            received += chunk
            if b" 429 " in received[:40]:
                result.refusals.append(seconds)
                return
            if not chunk:
                raise SystemExit(f"{server.name} answered: {received[-500:]!r}")
            if ttft is None and b'"delta"' in received:
                ttft = seconds
    assert ttft is not None, "a stream has text before its end"
    waited = re.search(rb'"queue_s": ?([\d.e-]+)', received)
    result.ttft.append(ttft - (float(waited[1]) if waited else 0.0))


async def time_trivial_requests(server: ServerUnderTest, count: int) -> list[float]:
    """Seconds that each of ``count`` trivial requests takes, all sent at the same moment."""

    async def get_models() -> float:
        began = time.perf_counter()
        async with send(server.port, "GET", "/v1/models") as response:
            if b" 200 " not in await response.read(65_536):
                raise SystemExit(f"{server.name} does not answer GET /v1/models.")
        return time.perf_counter() - began

    return await asyncio.gather(*(get_models() for _ in range(count)))
