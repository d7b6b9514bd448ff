"""Reads what Ray's agents export: one per node, each with the metrics of all processes of its node."""

import asyncio
import logging
from urllib.request import ProxyHandler, build_opener

import ray

from minigpt4_serve.server.http.metrics_route import merge_metrics

__all__ = ["read_metrics"]

_log = logging.getLogger(__name__)

_PREFIX = "ray_minigpt4_"
_TIMEOUT_S = 5.0
_opener = build_opener(ProxyHandler({}))  # nodes of a cluster reach each other without a proxy


async def read_metrics() -> str:
    """The metrics of all HTTP processes and engines of the cluster. A node that doesn't answer is left out."""
    return merge_metrics(await asyncio.to_thread(_fetch_all), _PREFIX)


def _fetch_all() -> list[str]:
    texts = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        address = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        try:
            with _opener.open(f"http://{address}/metrics", timeout=_TIMEOUT_S) as response:
                texts.append(response.read().decode())
        except OSError as error:
            _log.warning("no metrics from node %s: %s", address, error)
    return texts
