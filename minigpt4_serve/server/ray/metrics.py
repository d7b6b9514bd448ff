"""The metrics for operators, by name, and how they are updated.

Ray exports them on its metrics port as ``ray_<name>``, counters with the suffix ``_total``. The content of a request
never becomes a label.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from minigpt4_serve.protocol import Timings, Usage

__all__ = ["METRICS", "EngineMeter", "HttpMeter", "Metric"]


class Metric(NamedTuple):
    """The description of a metric."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()

    def exported(self, name: str) -> str:
        """The name of the series in Prometheus."""
        return f"ray_{name}" + {"counter": "_total", "gauge": "", "histogram": "_bucket"}[self.kind]


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# Updated by HTTP processes.
_HTTP_METRICS = {
    "minigpt4_ttft_seconds": Metric("histogram", "From the request's arrival at the engine to its first token."),
    "minigpt4_inter_token_seconds": Metric("histogram", "Between two tokens of an answer: the mean of each answer."),
    "minigpt4_queue_seconds": Metric("histogram", "In the queue, until a slot was free."),
    "minigpt4_image_decode_seconds": Metric("histogram", "Decoding images; 0 if they were cached."),
    "minigpt4_image_encode_seconds": Metric("histogram", "Encoding images; 0 if they were cached."),
    "minigpt4_prefill_seconds": Metric("histogram", "Prefill of the prompt, from the slot to the first token."),
    "minigpt4_decode_seconds": Metric("histogram", "Decoding, from the first token to the last."),
    "minigpt4_request_seconds": Metric("histogram", "A whole HTTP request.", ("path", "status")),
    "minigpt4_refusals": Metric("counter", "Requests answered with an error, by its code.", ("reason",)),
    "minigpt4_prompt_tokens": Metric("counter", "Prompt tokens."),
    "minigpt4_cached_tokens": Metric("counter", "Prompt tokens found in the prefix cache."),
    "minigpt4_completion_tokens": Metric("counter", "Tokens of answers."),
}

# Updated by engines: name → (metric, field of EngineStats).
_ENGINE_METRICS = {
    "minigpt4_running": (Metric("gauge", "Answers in progress."), "running"),
    "minigpt4_waiting": (Metric("gauge", "Requests in the queue."), "waiting"),
    "minigpt4_kv_blocks": (Metric("gauge", "Blocks of the KV cache in use."), "blocks_held"),
    "minigpt4_kv_blocks_capacity": (Metric("gauge", "Blocks of the KV cache."), "blocks_total"),
    "minigpt4_image_hits": (Metric("counter", "Images found in the cache."), "image_hits"),
    "minigpt4_image_decodes": (Metric("counter", "Images decoded."), "image_decodes"),
    "minigpt4_image_encodes": (Metric("counter", "Images encoded."), "image_encodes"),
    "minigpt4_generated_tokens": (Metric("counter", "Tokens that the engine sampled."), "generated_tokens"),
    "minigpt4_preemptions": (
        Metric("counter", "Answers that lost their blocks for a while."),
        "preemptions",
    ),
    "minigpt4_aborted": (Metric("counter", "Answers whose client disconnected."), "aborted"),
}

METRICS = {**_HTTP_METRICS, **{name: metric for name, (metric, _) in _ENGINE_METRICS.items()}}
"""All metrics; the dashboard in ``configs/grafana.json`` uses no others."""


def _make(name: str, metric: Metric) -> Any:
    from ray.serve import metrics

    labels: Any = metric.labels  # Ray's annotation says one label; it takes any number
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.text, boundaries=list(_SECONDS), tag_keys=labels)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(name, metric.text, tag_keys=labels)


class HttpMeter:
    """Counts requests and answers of an HTTP process, see ``request_log.Meter``."""

    def __init__(self) -> None:
        self._metrics = {name: _make(name, metric) for name, metric in _HTTP_METRICS.items()}

    def answer(self, usage: "Usage", timings: "Timings") -> None:
        """See ``Meter``."""
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
        """See ``Meter``; ``path`` is that of a route."""
        tags = {"path": path, "status": str(status)}
        self._metrics["minigpt4_request_seconds"].observe(seconds, tags)
        if refusal is not None:
            self._metrics["minigpt4_refusals"].inc(1, {"reason": refusal})


class EngineMeter:
    """Exports the counters of an engine."""

    def __init__(self) -> None:
        self._metrics = {name: _make(name, metric) for name, (metric, _) in _ENGINE_METRICS.items()}
        self._exported: dict[str, float] = {}

    def update(self, stats: Mapping[str, float]) -> None:
        """Export the current ``EngineStats``."""
        for name, (metric, field) in _ENGINE_METRICS.items():
            if metric.kind == "gauge":
                self._metrics[name].set(stats[field])
            elif (increase := stats[field] - self._exported.get(name, 0)) > 0:
                self._metrics[name].inc(increase)
                self._exported[name] = stats[field]
