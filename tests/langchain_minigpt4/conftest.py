"""The fake server, which the environment names."""

from collections.abc import Iterator

import pytest
from fakes.openai_server import OpenAIServer, vision_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.delenv("MINIGPT4_API_KEY", raising=False)
    with vision_server() as running:
        monkeypatch.setenv("MINIGPT4_BASE_URL", running.url)
        yield running
