"""Tables, ratios and the plot of a run of the engine's benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.measurement import Measurement, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot", "ratios", "table"]

_PLAIN_COLOR = "#9aa5b1"
_OUR_COLOR = "#1f6feb"
_AXIS_LABELS = {
    "(a)": "one at\na time",
    "(b)": "static\nbatches",
    "(c)": "transformers'\ncontinuous",
    "(d)": "this\nengine",
}


def table(title: str, measurements: Sequence[Measurement]) -> str:
    """A Markdown table."""
    lines = [
        f"### {title}\n",
        "| | tokens/s | TTFT p50 / p95, ms | ITL p50 / p95, ms | prefill tokens | from the cache | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in measurements:
        if one.unavailable is not None:
            lines.append(f"| {one.name} | not available: {one.unavailable} | | | | | |")
            continue
        ttft = _milliseconds(one.ttft, digits=0)
        itl = _milliseconds(one.itl, digits=1)
        lines.append(
            f"| {one.name} | {one.tokens_per_second:,.0f} | {ttft} | {itl} | {one.prefill_tokens:,} | "
            f"{one.cached_tokens:,} | {one.decode_steps or '–'} |"
        )
    return "\n".join(lines) + "\n"


def _milliseconds(seconds: Sequence[float], *, digits: int) -> str:
    """Median and 95th percentile."""
    if not seconds:
        return "–"
    return " / ".join(f"{1000 * percentile(seconds, percent):,.{digits}f}" for percent in (50, 95))


def ratios(
    burst: Sequence[Measurement],
    poisson: Sequence[Measurement],
    conversation: Sequence[Sequence[Measurement]],
    *,
    with_cpu_time: bool,
) -> dict[str, float]:
    """Ratios of the engine to the plain ways, by name."""
    *plain, ours = burst
    found = {}
    for one in plain:
        if one.unavailable is None:
            found[f"throughput to {one.name[:3]}"] = ours.tokens_per_second / one.tokens_per_second
    found["(a)'s TTFT p50 to ours, Poisson"] = percentile(poisson[0].ttft, 50) / percentile(poisson[1].ttft, 50)
    with_reuse, without_reuse = conversation
    found["last turn's TTFT without reuse to with"] = without_reuse[-1].ttft[0] / with_reuse[-1].ttft[0]
    read, read_again = (sum(turn.prefill_tokens for turn in turns) for turns in conversation)
    found["prefill with reuse, share"] = read / read_again
    if with_cpu_time:
        for one in plain:
            if one.unavailable is None:
                ratio = ours.tokens_per_cpu_second / one.tokens_per_cpu_second
                found[f"tokens per CPU second to {one.name[:3]}"] = ratio
    return {name: round(value, 3) for name, value in found.items()}


def plot(
    path: Path,
    burst: Sequence[Measurement],
    poisson: Sequence[Measurement],
    conversation: Sequence[Sequence[Measurement]],
    title: str,
) -> None:
    """Draw throughput, the wait for the first token and a conversation's turns side by side.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    _plot_burst(axes[0], [one for one in burst if one.unavailable is None])
    _plot_poisson(axes[1], poisson)
    _plot_conversation(axes[2], conversation)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_burst(axis: "Axes", measurements: Sequence[Measurement]) -> None:
    colors = [_OUR_COLOR if one.name.startswith("(d)") else _PLAIN_COLOR for one in measurements]
    rates = [one.tokens_per_second for one in measurements]
    bars = axis.bar([_AXIS_LABELS[one.name[:3]] for one in measurements], rates, color=colors)
    axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=2)
    axis.set_title("Burst: tokens per second")


def _plot_poisson(axis: "Axes", measurements: Sequence[Measurement]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for one, color in zip(measurements, (_PLAIN_COLOR, _OUR_COLOR), strict=True):
        milliseconds = sorted(1000 * seconds for seconds in one.ttft)
        shares = [(i + 1) / len(milliseconds) for i in range(len(milliseconds))]
        label = _AXIS_LABELS[one.name[:3]].replace("\n", " ")
        axis.step(milliseconds, shares, where="post", color=color, linewidth=2.2, label=label)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("time to the first token, ms")
    axis.set_title("Poisson arrivals: share of requests answered")
    axis.legend(frameon=False, loc="best")


def _plot_conversation(axis: "Axes", conversation: Sequence[Sequence[Measurement]]) -> None:
    labels = (("with reuse", _OUR_COLOR), ("without reuse", _PLAIN_COLOR))
    for turns, (label, color) in zip(conversation, labels, strict=True):
        milliseconds = [1000 * turn.ttft[0] for turn in turns]
        axis.plot(range(1, len(turns) + 1), milliseconds, marker="o", color=color, linewidth=2.2, label=label)
    axis.set_ylim(bottom=0)
    axis.set_xticks(range(1, len(conversation[0]) + 1))
    axis.set_xlabel("turn of a chat about one picture")
    axis.set_title("Time to the first token, ms")
    axis.legend(frameon=False)
