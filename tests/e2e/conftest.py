"""A second server, started once for all tests that need keys, a converted checkpoint or a single engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_chats import ConvertedServer, convert_recorded
from processes import serving

from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key


@pytest.fixture(scope="session")
def converted_v2(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConvertedServer]:
    """The recorded MiniGPT-v2 checkpoint, converted, and a server of it that requires a key."""
    folder = tmp_path_factory.mktemp("converted")
    expected = convert_recorded(golden, "v2", folder / "v2")
    keys_file = folder / "keys.json"
    key = add_key(keys_file, "tests", KeyLimits())
    settings: dict[str, Any] = {"model": {"path": str(folder / "v2")}, "keys_file": str(keys_file)}
    settings_file = folder / "settings.yaml"
    settings_file.write_text(json.dumps(settings))  # JSON is YAML
    with serving("--config", str(settings_file)) as server:
        yield ConvertedServer(server, settings_file, settings, keys_file, key, expected)
