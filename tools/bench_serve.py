#!/usr/bin/env python3
"""What does the way through Ray Serve cost? Streams through the real server, beside the same engine in one process.

    python tools/bench.py serve                      32 streams: bare uvicorn, one engine, three engines
    python tools/bench.py serve --side haproxy:RAY_SERVE_ENABLE_HA_PROXY=1   one more side, with this environment

All servers run at the same time and are asked in turn, round by round, so that a busy machine is busy for all of them
alike. The client is a bare socket: it costs the same for every side. A side is NAME[:KEY=VALUE…]; keys in capitals are
the server's environment, others are settings (``scale.engines=3``). Prints a table, writes runs/bench/serve.json.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
TINY_MODEL = ROOT / "minigpt4_serve" / "weights" / "tiny"
START_TIMEOUT_S = 300
CROWD_TOKENS = 32  # length of each answer in a crowd
OVERLOAD_S = 8.0
REFUSAL_S = 0.1  # who is refused later than this is counted as late
SIDES = ("uvicorn", "one engine", "three engines:scale.engines=3")


@dataclass
class Side:
    """One server and what was measured of it."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: int = 0  # its id; all others of the side are its descendants
    cpu_seconds: float = 0.0  # of all of them, while the side was asked
    tokens: int = 0
    events: int = 0
    seconds: float = 0.0
    ttft: list[float] = field(default_factory=list)
    cached: int = 0
    prompt: int = 0
    crowds: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def summary(self, base: float) -> dict[str, Any]:
        return {
            "tokens_per_s": round(self.rate, 1),
            "of_uvicorn": round(self.rate / base, 3) if base else None,
            "ttft_p50_ms": round(1000 * percentile(self.ttft, 50), 1),
            "ttft_p95_ms": round(1000 * percentile(self.ttft, 95), 1),
            "tokens_per_cpu_s": round(self.tokens / self.cpu_seconds, 1) if self.cpu_seconds else None,
            "tokens_per_event": round(self.tokens / max(1, self.events), 2),
            "cached_share_of_prompts": round(self.cached / max(1, self.prompt), 3),
            **self.crowds,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def read_side(text: str, common: dict[str, Any]) -> Side:
    """``NAME[:KEY=VALUE…]``."""
    name, *pairs = text.split(":")
    side = Side(name, json.loads(json.dumps(common)))
    for key, _, value in (pair.partition("=") for pair in pairs):
        if key.isupper():
            side.environment[key] = value
            continue
        *path, last = key.split(".")
        place = side.settings
        for step in path:
            place = place.setdefault(step, {})
        place[last] = yaml.safe_load(value)
    return side


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(side: Side, folder: Path) -> Iterator[None]:
    """The side's server, until it answers and to its end."""
    side.port = free_port()
    file = folder / f"{side.port}.yaml"
    file.write_text(yaml.safe_dump({**side.settings, "port": side.port, "model_name": "bench"}))
    command = [str(Path(sys.executable).with_name("minigpt4")), "serve", "--config", str(file)]
    if side.name.startswith("uvicorn"):
        command = [sys.executable, __file__, "--uvicorn", str(file)]
    log = (folder / f"{side.port}.log").open("w+")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **side.environment}
    process = subprocess.Popen(  # noqa: S603
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    side.process = process.pid
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not asyncio.run(_answers(side.port)):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"{side.name} did not come up:\n{log.read()[-2000:]}")
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    with contextlib.suppress(OSError):
        return b" 200 " in (await reader.read(100))
    return False


def serve_bare(file: Path) -> None:
    """The same application and engine in one process, without Ray."""
    import uvicorn

    from minigpt4_serve.serving.replica import load_engine
    from minigpt4_serve.serving.routes import create_app
    from minigpt4_serve.settings import read_serve_settings

    settings = read_serve_settings(file, {})
    engine, service = load_engine(settings)
    uvicorn.run(create_app(service), port=settings.port, log_level="error")
    engine.shutdown()


def random_model(folder: Path) -> Path:
    """The embedded model's files with random weights: its answers are as long as they are asked to be."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    weights = load_file(TINY_MODEL / "model.safetensors")
    for name, values in weights.items():
        if values.ndim > 1:
            weights[name] = (torch.randn(values.shape) * 0.02).to(values.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def chats(count: int, turns: int, tokens: int, seed: int) -> list[list[bytes]]:
    """Bodies of ``count`` chats of so many turns, each about a picture of its own."""
    rng = random.Random(seed)
    all_chats = []
    for _ in range(count):
        image = Image.new("RGB", (224, 224), tuple(rng.randrange(256) for _ in range(3)))
        ImageDraw.Draw(image).ellipse((60, 60, 160, 160), fill=tuple(rng.randrange(256) for _ in range(3)))
        image.save(file := io.BytesIO(), "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        messages: list[dict[str, Any]] = []
        bodies = []
        for turn in range(turns):
            text = {"type": "text", "text": f"Question {turn}: what is it?"}
            content = [text] if turn else [{"type": "image_url", "image_url": {"url": url}}, text]
            messages = [*messages, {"role": "user", "content": content}]
            wanted = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
            # Every answer has the same length, unless a trained model says that it is done.
            wanted |= {"max_tokens": tokens, "min_tokens": tokens, "temperature": 1.0, "seed": turn}
            bodies.append(json.dumps(wanted).encode())
            messages = [*messages, {"role": "assistant", "content": "It is a circle."}]
        all_chats.append(bodies)
    return all_chats


async def ask(side: Side, body: bytes) -> None:
    """One streamed answer, counted."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
    first, events, tail = None, 0, b""
    while piece := await reader.read(65536):
        count = len(re.findall(rb'"content": ?"', piece))
        if first is None and b'"delta"' in piece:
            first = time.perf_counter()
        events += count
        tail = (tail + piece)[-4000:]
    writer.close()
    usage = re.search(rb'"usage": ?(\{.*?\}\})', tail)
    if usage is None or first is None:
        raise SystemExit(f"{side.name} answered: {tail[-500:]!r}")
    counts = json.loads(usage[1])
    side.tokens += counts["completion_tokens"]
    side.prompt += counts["prompt_tokens"]
    side.cached += counts["prompt_tokens_details"]["cached_tokens"]
    side.events += events
    side.ttft.append(first - began)


@dataclass
class Crowd:
    """What became of requests that were more than a side can answer; in seconds."""

    refused: list[float] = field(default_factory=list)  # until the 429's first byte
    begun: list[float] = field(default_factory=list)  # until the first words, less the wait for a slot

    def summary(self, name: str) -> dict[str, Any]:
        late = sum(seconds > REFUSAL_S for seconds in self.refused)
        refusals = {
            f"{name}_refused": len(self.refused),
            f"{name}_refused_p50_ms": round(1000 * percentile(self.refused, 50), 1),
            f"{name}_refused_p99_ms": round(1000 * percentile(self.refused, 99), 1),
            f"{name}_refused_late": late,
        }
        return {
            f"{name}_answered": len(self.begun),
            **(refusals if self.refused else {}),
            f"{name}_ttft_p50_ms": round(1000 * percentile(self.begun, 50), 1),
            f"{name}_ttft_p95_ms": round(1000 * percentile(self.begun, 95), 1),
        }


async def press(side: Side, body: bytes, outcome: Crowd, wait: float = 0.0) -> None:
    """One request of a crowd: it is refused, or answered to its end."""
    await asyncio.sleep(wait)
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    seen, first = b"", None
    while b"data: [DONE]" not in seen and (piece := await reader.read(65536)):
        seconds = time.perf_counter() - began
        seen += piece
        if b" 429 " in seen[:40]:
            outcome.refused.append(seconds)
            break
        if first is None and b'"delta"' in seen:
            first = seconds
    else:
        if first is None:
            raise SystemExit(f"{side.name} answered: {seen[-500:]!r}")
        waited = re.search(rb'"queue_s": ?([\d.e-]+)', seen)
        outcome.begun.append(first - (float(waited[1]) if waited else 0.0))
    writer.close()


async def full(side: Side, seconds: float) -> Crowd:
    """Every slot is taken and nobody has to wait: what those who are answered in a crowd are compared with."""
    slots = side.settings["engine"]["max_running"] * side.settings["scale"].get("engines", 1)
    bodies = iter(
        [chat[0] for chat in chats(int(2 * seconds * side.rate / CROWD_TOKENS) + slots, 1, CROWD_TOKENS, seed=9)]
    )
    outcome = Crowd()
    end = time.perf_counter() + seconds

    async def ask_again_and_again() -> None:
        while time.perf_counter() < end:
            await press(side, next(bodies), outcome)

    await asyncio.gather(*(ask_again_and_again() for _ in range(slots)))
    return outcome


async def burst(side: Side, times: int) -> Crowd:
    """``times`` as many requests as are answered and may wait, at the same moment."""
    engine = side.settings["engine"]
    capacity = (engine["max_running"] + engine["max_waiting"]) * side.settings["scale"].get("engines", 1)
    bodies = [chat[0] for chat in chats(times * capacity, 1, CROWD_TOKENS, seed=7)]
    outcome = Crowd()
    await asyncio.gather(*(press(side, body, outcome) for body in bodies))
    return outcome


async def overload(side: Side, times: int, seconds: float) -> Crowd:
    """Requests arrive one by one, ``times`` as many in a second as the side can answer."""
    count = int(times * side.rate / CROWD_TOKENS * seconds)
    bodies = [chat[0] for chat in chats(count, 1, CROWD_TOKENS, seed=8)]
    outcome = Crowd()
    await asyncio.gather(*(press(side, body, outcome, seconds * i / count) for i, body in enumerate(bodies)))
    return outcome


async def trivial(side: Side, count: int) -> list[float]:
    """Seconds that each of ``count`` requests takes that ask for next to nothing, all at the same moment."""

    async def get() -> float:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        if b" 200 " not in await reader.read(65536):
            raise SystemExit(f"{side.name} does not answer")
        writer.close()
        return time.perf_counter() - began

    return await asyncio.gather(*(get() for _ in range(count)))


def crowds(side: Side, times: int) -> None:
    """More than a side can answer, in two ways, beside what that many connections cost by themselves."""
    print(f"{side.name}: {times} times more than it can answer", file=sys.stderr, flush=True)
    at_once = asyncio.run(burst(side, times))
    taken = asyncio.run(full(side, OVERLOAD_S))
    steady = asyncio.run(overload(side, times, OVERLOAD_S))
    plain = asyncio.run(trivial(side, len(at_once.begun) + len(at_once.refused)))
    side.crowds = {**taken.summary("full"), **steady.summary("overload"), **at_once.summary("burst")}
    side.crowds["trivial_p50_ms"] = round(1000 * percentile(plain, 50), 1)
    side.crowds["trivial_p99_ms"] = round(1000 * percentile(plain, 99), 1)


async def round_of(side: Side, work: Sequence[Sequence[bytes]], rng: random.Random) -> None:
    """All chats at once; within a turn in an order that no round-robin could be right by."""
    began, spent = time.perf_counter(), cpu_seconds(side.process)
    for turn in range(len(work[0])):
        shuffled = list(work)
        rng.shuffle(shuffled)
        await asyncio.gather(*(ask(side, chat[turn]) for chat in shuffled))
    side.seconds += time.perf_counter() - began
    side.cpu_seconds += cpu_seconds(side.process) - spent


def family(process: int) -> dict[int, int]:
    """The process and its living descendants, each with the clock ticks that it has spent so far."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may be gone by now
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    members = [process]
    for one in members:
        members += children.get(one, [])
    return {one: ticks.get(one, 0) for one in members}


def cpu_seconds(process: int) -> float:
    """What a process and its descendants have spent. Unlike the clock it doesn't ask who else is there: where more
    programs run than cores, whoever has more processes gets more of the machine.
    """
    return sum(family(process).values()) / os.sysconf("SC_CLK_TCK")


def give_http_a_core(side: Side) -> None:
    """The side's engines leave the first core to everything else, as on a machine that has one to spare."""
    others = set(range(1, os.cpu_count() or 1))
    for process in family(side.process):
        with contextlib.suppress(OSError):
            if b":engine" in Path(f"/proc/{process}/cmdline").read_bytes():
                for thread in Path(f"/proc/{process}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), others)


def measure(sides: list[Side], *, streams: int, turns: int, tokens: int, rounds: int) -> None:
    for number in range(rounds + 1):
        for side in sides:
            work = chats(streams, turns, tokens if number else 8, seed=1000 * number + side.port)
            measured = (
                side if number else Side(side.name, port=side.port, process=side.process)
            )  # the first round only warms up
            asyncio.run(round_of(measured, work, random.Random(number)))
            if number:
                print(f"round {number}: {side.name:<28} {side.rate:8.0f} tokens/s so far", file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a converted model's folder; by default random weights")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128, help="length of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's, in each engine")
    parser.add_argument("--crowd", type=int, default=5, help="times the capacity that comes at the end")
    parser.add_argument("--http-core", action="store_true", help="engines leave the first core to HTTP and the client")
    parser.add_argument("--side", action="append", default=[], help="one more; see above")
    parser.add_argument("--only", action="store_true", help="only bare uvicorn and the sides given")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench" / "serve.json")
    parser.add_argument("--uvicorn", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.uvicorn is not None:
        serve_bare(asked.uvicorn)
        return
    sizes = {"cpu_threads": asked.threads, "max_running": asked.streams, "max_waiting": asked.streams // 4}
    common: dict[str, Any] = {"engine": sizes}
    common["scale"] = {"cpus_per_engine": 0}
    names = [*(SIDES[:1] if asked.only else SIDES), *asked.side]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        common["model"] = {"path": str(asked.model or random_model(Path(folder) / "model"))}
        sides = [read_side(name, common) for name in names]
        for side in sides:
            running.enter_context(serving(side, Path(folder)))
            print(f"{side.name} is up", file=sys.stderr, flush=True)
            if asked.http_core:
                give_http_a_core(side)
        measure(sides, streams=asked.streams, turns=asked.turns, tokens=asked.tokens, rounds=asked.rounds)
        for side in sides if asked.crowd else ():
            crowds(side, asked.crowd)
    base = sides[0].rate
    rows = {side.name: side.summary(base) for side in sides}
    print(f"{asked.streams} streams, {asked.turns} turns of {asked.tokens} tokens, {asked.rounds} rounds")
    print(f"{'':<26}" + "".join(f"{name:>16}" for name in rows))
    for what in next(iter(rows.values())):
        print(f"{what:<26}" + "".join(f"{row.get(what)!s:>16}" for row in rows.values()))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
