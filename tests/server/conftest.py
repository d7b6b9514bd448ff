"""A server of each module, and the official client of it; modules that need other settings define their own."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving_app import serving


@pytest.fixture(scope="module")
def served(small_model: Any) -> Iterator[httpx.Client]:
    """HTTP of a server with the small model."""
    with serving(small_model) as (client, _):
        yield client


@pytest.fixture(scope="module")
def client(served: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client of ``served``."""
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client
