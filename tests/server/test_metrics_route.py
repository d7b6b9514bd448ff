"""``/metrics`` on the port of the API."""

from typing import Any

import httpx
import pytest
from serving_app import serving

from minigpt4_serve.server.http.metrics_route import merge_metrics
from minigpt4_serve.server.http.routes import create_app

FIRST = """# HELP ray_node_cpu Of the machine.
# TYPE ray_node_cpu gauge
ray_node_cpu{node="a"} 7
# HELP ray_minigpt4_running Answers in progress.
# TYPE ray_minigpt4_running gauge
ray_minigpt4_running{engine="one"} 2
# HELP ray_minigpt4_ttft_seconds Until the first token.
# TYPE ray_minigpt4_ttft_seconds histogram
ray_minigpt4_ttft_seconds_bucket{le="1"} 3
ray_minigpt4_ttft_seconds_count 3
"""
SECOND = """# HELP ray_minigpt4_running Answers in progress.
# TYPE ray_minigpt4_running gauge
ray_minigpt4_running{engine="two"} 4
ray_minigpt4_running{engine="three"} 1
"""


def test_exports_of_several_nodes_are_one_document() -> None:
    assert merge_metrics([FIRST, SECOND, ""], "ray_minigpt4_").splitlines() == [
        "# HELP ray_minigpt4_running Answers in progress.",
        "# TYPE ray_minigpt4_running gauge",
        'ray_minigpt4_running{engine="one"} 2',
        'ray_minigpt4_running{engine="two"} 4',
        'ray_minigpt4_running{engine="three"} 1',
        "# HELP ray_minigpt4_ttft_seconds Until the first token.",
        "# TYPE ray_minigpt4_ttft_seconds histogram",
        'ray_minigpt4_ttft_seconds_bucket{le="1"} 3',
        "ray_minigpt4_ttft_seconds_count 3",
    ]
    assert merge_metrics([], "ray_minigpt4_") == ""


@pytest.mark.parametrize("key", [None, "right"])
async def test_metrics_need_a_key_where_the_api_does(small_model: Any, key: str | None) -> None:
    async def read() -> str:
        return FIRST

    with serving(small_model, api_key=key) as (_, service):
        transport = httpx.ASGITransport(app=create_app(service, metrics=read))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/metrics")).status_code == (401 if key else 200)
            response = await client.get("/metrics", headers={"authorization": f"Bearer {key}"})
        assert response.text == FIRST
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        without = httpx.ASGITransport(app=create_app(service))
        async with httpx.AsyncClient(transport=without, base_url="http://localhost") as client:
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.get("/metrics", headers=headers)).status_code == 404
