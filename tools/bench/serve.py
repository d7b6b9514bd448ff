"""Measure the cost of Ray Serve: streams through the real server, and through the same engine in one process.

    python -m tools.bench serve                      32 streams: bare uvicorn, one engine, three engines
    python -m tools.bench serve --server haproxy:RAY_SERVE_ENABLE_HA_PROXY=1   one more, with this environment

All servers run at the same time and take turns, round by round, so that other programs on the machine slow all of them
down alike. The client is a bare socket: it costs the same for every server. A server is NAME[:KEY=VALUE…]; keys
in capitals are its environment, others are settings (scale.engines=3); one whose name begins with uvicorn runs without
Ray. Prints a table and writes serve.json.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.bench.http_requests import StreamedAnswer, chat_bodies, stream_chat
from tools.bench.measurement import Throughput, log_progress, percentiles_ms
from tools.bench.overload import measure_overload
from tools.bench.servers import (
    BARE,
    ServerUnderTest,
    parse_server,
    reserve_core_for_http,
    running,
    write_random_model,
)

__all__ = ["ServerResult", "main"]

_SERVERS = (BARE, "one engine", "three engines:scale.engines=3")
_WARM_UP_TOKENS = 8


@dataclass
class ServerResult(Throughput):
    """Measurements of one server. ``cpu_seconds`` are those of all its processes while it answered."""

    answers: list[StreamedAnswer] = field(default_factory=list)
    overload: dict[str, Any] = field(default_factory=dict)

    def add(self, answers: Sequence[StreamedAnswer]) -> None:
        """Count answers and their tokens."""
        self.answers += answers
        self.tokens += sum(one.completion_tokens for one in answers)

    def summary(self, base_rate: float) -> dict[str, Any]:
        """Plain values for JSON; ``base_rate`` is the bare server's tokens per second."""
        events = sum(one.events for one in self.answers)
        cached = sum(one.cached_tokens for one in self.answers)
        prompt = sum(one.prompt_tokens for one in self.answers)
        return {
            "tokens_per_s": round(self.tokens_per_second, 1),
            "of_uvicorn": round(self.tokens_per_second / base_rate, 3) if base_rate else None,
            **percentiles_ms("ttft", [one.ttft for one in self.answers], (50, 95)),
            "tokens_per_cpu_s": round(self.tokens_per_cpu_second, 1),
            "tokens_per_event": round(self.tokens / max(1, events), 2),
            "cached_share_of_prompts": round(cached / max(1, prompt), 3),
            **self.overload,
        }


def main(arguments: Sequence[str]) -> int:
    """Start all servers, measure, print and write the result. Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    engine = {"cpu_threads": options.threads, "max_running": options.streams, "max_waiting": options.streams // 4}
    settings: dict[str, Any] = {"engine": engine, "scale": {"cpus_per_engine": 0}}
    names = [*(_SERVERS[:1] if options.only else _SERVERS), *options.server]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        # A SIGTERM, too, stops the servers on the way out.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGTERM, before)
        settings["model"] = {"path": str(options.model or write_random_model(Path(scratch) / "model"))}
        servers = [parse_server(name, settings) for name in names]
        if len({server.name for server in servers}) < len(servers):
            parser.error("each server needs a name of its own")
        for server in servers:
            stack.enter_context(running(server, Path(scratch)))
            log_progress(f"{server.name} is ready")
            if options.http_core:
                reserve_core_for_http(server)
        sizes = {"streams": options.streams, "turns": options.turns, "tokens": options.tokens}
        results = measure(servers, rounds=options.rounds, **sizes)
        for server in servers if options.overload else ():
            log_progress(f"{server.name}: {options.overload} times more than it can answer")
            result = results[server.name]
            result.overload = measure_overload(server, result.tokens_per_second, options.overload)
    base_rate = results[servers[0].name].tokens_per_second
    rows = {name: result.summary(base_rate) for name, result in results.items()}
    print(f"{options.streams} streams, {options.turns} turns of {options.tokens} tokens, {options.rounds} rounds")
    print(f"{'':<26}" + "".join(f"{name:>16}" for name in rows))
    for key in next(iter(rows.values())):
        print(f"{key:<26}" + "".join(f"{row.get(key)!s:>16}" for row in rows.values()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serve.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a converted model's folder; by default random weights")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128, help="length of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's, in each engine")
    parser.add_argument("--overload", type=int, default=5, metavar="FACTOR", help="times the capacity; 0: don't")
    parser.add_argument("--http-core", action="store_true", help="engines leave the first core to HTTP and the client")
    parser.add_argument("--server", action="append", default=[], help="one more; see above")
    parser.add_argument("--only", action="store_true", help="only bare uvicorn and the servers given")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results; %(default)s")
    return parser


def measure(
    servers: Sequence[ServerUnderTest], *, streams: int, turns: int, tokens: int, rounds: int
) -> dict[str, ServerResult]:
    """Send requests to the servers in turn, round by round, after a warm-up round."""
    results = {server.name: ServerResult() for server in servers}
    for number in range(rounds + 1):
        for server in servers:
            warm_up = number == 0
            result = ServerResult() if warm_up else results[server.name]
            chats = chat_bodies(
                streams, turns, _WARM_UP_TOKENS if warm_up else tokens, seed=1000 * number + server.port
            )
            asyncio.run(stream_chats(server, chats, result, random.Random(number)))
            if not warm_up:
                log_progress(f"round {number}: {server.name:<28} {result.tokens_per_second:8.0f} tokens/s so far")
    return results


async def stream_chats(
    server: ServerUnderTest, chats: Sequence[Sequence[bytes]], result: ServerResult, rng: random.Random
) -> None:
    """Send all chats at once, each turn in a random order: round-robin routing can't then match chats with engines."""
    began = time.perf_counter()
    cpu_began = server.cpu_seconds()
    for turn in range(len(chats[0])):
        shuffled = list(chats)
        rng.shuffle(shuffled)
        result.add(await asyncio.gather(*(stream_chat(server.port, chat[turn]) for chat in shuffled)))
    result.seconds += time.perf_counter() - began
    result.cpu_seconds += server.cpu_seconds() - cpu_began
