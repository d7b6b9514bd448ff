"""Requests of many megabytes through a running server: HTTP process, gRPC, engine."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

MIB = 2**20


def _photograph(size: int, seed: int) -> str:
    """A ``data:`` URL of noise, which nothing compresses, as PNG of about ``size`` bytes."""
    side = int((size / 3) ** 0.5)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    assert abs(file.tell() - size) < size // 100
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _ask(server: str, urls: list[str], **fields: Any) -> httpx.Response:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    message = {"role": "user", "content": [*images, {"type": "text", "text": "What is in this picture?"}]}
    body = {"messages": [message], "max_tokens": 8, "temperature": 0, **fields}
    return httpx.post(f"{server}/v1/chat/completions", json=body, timeout=300)


@pytest.mark.parametrize(("count", "size"), [(1, 19 * MIB), (8, MIB)], ids=["one of 19 MiB", "eight of 1 MiB"])
def test_large_images_are_answered(server: str, count: int, size: int) -> None:
    answer = _ask(server, [_photograph(size, seed) for seed in range(count)])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_a_schema_of_5_mb_is_followed(server: str) -> None:
    schema = {
        "type": "object",
        "properties": {"round": {"type": "boolean", "description": "Is it round? " * 400_000}},
        "required": ["round"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "round", "schema": schema}}
    answer = _ask(server, [], response_format=shape, max_tokens=40)
    assert answer.status_code == 200, answer.text
    found = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert list(found) == ["round"]
    assert found["round"] in (True, False)
