"""``/metrics`` for Prometheus, on the port of the API. Imports no Ray: the caller of ``add_metrics`` passes the source.

The route needs a key where the API needs one; Prometheus sends it as ``authorization: {credentials: KEY}``.
"""

from collections.abc import Awaitable, Callable, Iterable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["ReadMetrics", "add_metrics", "merge_metrics"]

ReadMetrics = Callable[[], Awaitable[str]]
"""Gives all metrics in Prometheus' text format."""

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics(app: FastAPI, read: ReadMetrics) -> None:
    """Add the route to an application."""

    async def metrics(_: Request) -> Response:
        return Response(await read(), headers={"content-type": _CONTENT_TYPE})

    app.add_api_route("/metrics", metrics, include_in_schema=False)


def merge_metrics(texts: Iterable[str], prefix: str) -> str:
    """Join exports of several sources, keeping the metrics whose names begin with ``prefix``.

    Each metric's series stay together below one pair of HELP and TYPE lines, as the format requires.
    """
    heads: dict[str, dict[str, str]] = {}  # metric → kind of comment → line
    series: dict[str, list[str]] = {}
    for text in texts:
        metric = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, metric, *_ = line.split(" ", 3)
                if metric.startswith(prefix):
                    heads.setdefault(metric, {}).setdefault(kind, line)
            elif line.startswith(prefix) and line.startswith(metric):
                series.setdefault(metric, []).append(line)
    lines = [line for metric, found in series.items() for line in (*heads.get(metric, {}).values(), *found)]
    return "".join(f"{line}\n" for line in lines)
