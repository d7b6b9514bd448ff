"""What operators can watch: every metric by name, and how one answer or one look at the engine is counted.

Knows Ray's metrics, and loads Ray only where one is made. They appear on Ray's metrics port as ``ray_<name>``, counters
with ``_total`` behind it. Contents never become a label.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from minigpt4_serve.protocol import Timings, Usage

__all__ = ["METRICS", "EngineMeter", "HttpMeter", "Metric"]


class Metric(NamedTuple):
    """A metric before it is made."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()

    def exported(self, name: str) -> str:
        """The series to ask Prometheus for."""
        return f"ray_{name}" + {"counter": "_total", "gauge": "", "histogram": "_bucket"}[self.kind]


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# Of each answer, where HTTP is spoken.
_OF_ANSWERS = {
    "minigpt4_ttft_seconds": Metric("histogram", "From the request's arrival at the engine to its first token."),
    "minigpt4_inter_token_seconds": Metric("histogram", "Between two tokens of an answer: the mean of each answer."),
    "minigpt4_queue_seconds": Metric("histogram", "In the line, until a slot was free."),
    "minigpt4_image_decode_seconds": Metric("histogram", "Decoding pictures; 0 if they were known."),
    "minigpt4_image_encode_seconds": Metric("histogram", "Encoding pictures; 0 if they were known."),
    "minigpt4_prefill_seconds": Metric("histogram", "Reading the prompt, from the slot to the first token."),
    "minigpt4_decode_seconds": Metric("histogram", "Writing the answer, from the first token to the last."),
    "minigpt4_request_seconds": Metric("histogram", "A whole HTTP request.", ("path", "status")),
    "minigpt4_refusals": Metric("counter", "Requests answered with an error, by its code.", ("reason",)),
    "minigpt4_prompt_tokens": Metric("counter", "Tokens read."),
    "minigpt4_cached_tokens": Metric("counter", "Of those, found in the prefix cache."),
    "minigpt4_completion_tokens": Metric("counter", "Tokens written."),
}

# Of each engine: name → (metric, field of EngineStats).
_OF_ENGINES = {
    "minigpt4_running": (Metric("gauge", "Answers in progress."), "running"),
    "minigpt4_waiting": (Metric("gauge", "Requests in the line."), "waiting"),
    "minigpt4_kv_blocks": (Metric("gauge", "Blocks of the KV cache in use."), "blocks_held"),
    "minigpt4_kv_blocks_capacity": (Metric("gauge", "Blocks of the KV cache."), "blocks_total"),
    "minigpt4_image_hits": (Metric("counter", "Pictures found in the cache."), "image_hits"),
    "minigpt4_image_decodes": (Metric("counter", "Pictures decoded."), "image_decodes"),
    "minigpt4_image_encodes": (Metric("counter", "Pictures encoded."), "image_encodes"),
    "minigpt4_generated_tokens": (Metric("counter", "Tokens that the engine chose."), "generated_tokens"),
    "minigpt4_preemptions": (Metric("counter", "Answers that gave up their blocks for a while."), "preemptions"),
    "minigpt4_aborted": (Metric("counter", "Answers whose caller left."), "aborted"),
}

METRICS = {**_OF_ANSWERS, **{name: metric for name, (metric, _) in _OF_ENGINES.items()}}
"""All of them; the dashboard in ``configs/grafana.json`` may name no other."""


def _make(name: str, metric: Metric) -> Any:
    from ray.serve import metrics

    labels: Any = metric.labels  # Ray's annotation says one label; it takes any number
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.text, boundaries=list(_SECONDS), tag_keys=labels)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(name, metric.text, tag_keys=labels)


class HttpMeter:
    """Counts requests and answers. One for each process that speaks HTTP."""

    def __init__(self) -> None:
        self._metrics = {name: _make(name, metric) for name, metric in _OF_ANSWERS.items()}

    def answer(self, usage: "Usage", timings: "Timings") -> None:
        """An answer has reached its end."""
        observed = {
            "ttft": timings.ttft_s,
            "inter_token": timings.decode_s / max(1, usage.completion_tokens - 1),
            "queue": timings.queue_s,
            "image_decode": timings.images_s,
            "image_encode": timings.encode_s,
            "prefill": timings.prefill_s,
            "decode": timings.decode_s,
        }
        for name, seconds in observed.items():
            self._metrics[f"minigpt4_{name}_seconds"].observe(seconds)
        counted = {
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "completion": usage.completion_tokens,
        }
        for name, tokens in counted.items():
            if tokens:
                self._metrics[f"minigpt4_{name}_tokens"].inc(tokens)

    def request(self, path: str, status: int, seconds: float, refusal: str | None) -> None:
        """A request has been answered; ``path`` is one of the server's own, never what a stranger wrote."""
        tags = {"path": path, "status": str(status)}
        self._metrics["minigpt4_request_seconds"].observe(seconds, tags)
        if refusal is not None:
            self._metrics["minigpt4_refusals"].inc(1, {"reason": refusal})


class EngineMeter:
    """Passes on what an engine counts by itself. One for each engine."""

    def __init__(self) -> None:
        self._metrics = {name: _make(name, metric) for name, (metric, _) in _OF_ENGINES.items()}
        self._told: dict[str, float] = {}

    def note(self, stats: Mapping[str, float]) -> None:
        """``EngineStats`` as they stand now."""
        for name, (metric, field) in _OF_ENGINES.items():
            if metric.kind == "gauge":
                self._metrics[name].set(stats[field])
            elif (grown := stats[field] - self._told.get(name, 0)) > 0:
                self._metrics[name].inc(grown)
                self._told[name] = stats[field]
