"""Tables, ratios and the plot of a run. Knows what was measured, not how."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_sides import Side, percentile

__all__ = ["machine_name", "plot", "ratios", "table"]


def table(title: str, sides: Sequence[Side]) -> str:
    """A Markdown table."""
    lines = [
        f"### {title}\n",
        "| | tokens/s | TTFT p50 / p95, ms | ITL p50 / p95, ms | prefill tokens | from the cache | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for side in sides:
        if side.missing is not None:
            lines.append(f"| {side.name} | not available: {side.missing} | | | | | |")
            continue
        first = (
            f"{1000 * percentile(side.ttft, 50):,.0f} / {1000 * percentile(side.ttft, 95):,.0f}" if side.ttft else "–"
        )
        between = (
            f"{1000 * percentile(side.itl, 50):,.1f} / {1000 * percentile(side.itl, 95):,.1f}" if side.itl else "–"
        )
        lines.append(
            f"| {side.name} | {side.rate:,.0f} | {first} | {between} | {side.prefill_tokens:,} | "
            f"{side.cached_tokens:,} | {side.decode_steps or '–'} |"
        )
    return "\n".join(lines) + "\n"


def ratios(
    sides: Sequence[Side], waiting: Sequence[Side], turns: Sequence[Sequence[Side]], *, device_is_cpu: bool
) -> dict[str, float]:
    """What the engine is judged by."""
    a, b, c, d = sides
    found = {"throughput to (a)": d.rate / a.rate, "throughput to (b)": d.rate / b.rate}
    if c.missing is None:
        found["throughput to (c)"] = d.rate / c.rate
    found["(a)'s TTFT p50 to ours, Poisson"] = percentile(waiting[0].ttft, 50) / percentile(waiting[1].ttft, 50)
    found["last turn's TTFT without reuse to with"] = turns[1][-1].ttft[0] / turns[0][-1].ttft[0]
    with_reuse, without = (sum(side.prefill_tokens for side in line) for line in turns)
    found["prefill with reuse, share"] = with_reuse / without
    if device_is_cpu:
        for name, side in (("(a)", a), ("(b)", b), ("(c)", c)):
            if side.missing is None:
                found[f"tokens per CPU second to {name}"] = d.tokens / d.cpu_seconds * side.cpu_seconds / side.tokens
    return {name: round(value, 3) for name, value in found.items()}


def plot(
    path: Path, sides: Sequence[Side], waiting: Sequence[Side], turns: Sequence[Sequence[Side]], title: str
) -> None:
    """Three pictures in one: throughput, the wait for the first token, and a chat's turns."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    plain, ours = "#9aa5b1", "#1f6feb"
    figure_, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    there = [side for side in sides if side.missing is None]
    short = {
        "(a)": "one at\na time",
        "(b)": "static\nbatches",
        "(c)": "transformers'\ncontinuous",
        "(d)": "this\nengine",
    }
    names = [short[side.name[:3]] for side in there]
    bars = left.bar(
        names, [side.rate for side in there], color=[ours if "(d)" in side.name else plain for side in there]
    )
    left.bar_label(bars, [f"{side.rate:,.0f}" for side in there], padding=2)
    left.set_title("Burst: tokens per second")
    for side, color in zip(waiting, (plain, ours), strict=True):
        values = sorted(1000 * value for value in side.ttft)
        shares = [(i + 1) / len(values) for i in range(len(values))]
        middle.step(
            values, shares, where="post", color=color, linewidth=2.2, label=short[side.name[:3]].replace("\n", " ")
        )
    middle.set_xscale("log")
    middle.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    middle.xaxis.set_major_formatter("{x:g}")
    middle.xaxis.set_minor_formatter(NullFormatter())
    middle.set_ylim(0, 1.02)
    middle.set_xlabel("time to the first token, ms")
    middle.set_title("Poisson arrivals: share of requests answered")
    middle.legend(frameon=False, loc="best")
    for line, color, label in zip(turns, (ours, plain), ("with reuse", "without reuse"), strict=True):
        right.plot(
            range(1, len(line) + 1),
            [1000 * side.ttft[0] for side in line],
            marker="o",
            color=color,
            linewidth=2.2,
            label=label,
        )
    right.set_ylim(bottom=0)
    right.set_xticks(range(1, len(turns[0]) + 1))
    right.set_xlabel("turn of a chat about one picture")
    right.set_title("Time to the first token, ms")
    right.legend(frameon=False)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    figure_.suptitle(title)
    figure_.savefig(path, dpi=120)
    plt.close(figure_)


def machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
