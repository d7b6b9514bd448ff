"""A second server for tests that need keys or a converted checkpoint: started once for both."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_chats import ConvertedServer, convert_recorded
from processes import running_server

from minigpt4_serve.serving.keys import KeyLimits, add_key


@pytest.fixture(scope="session")
def converted_v2(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConvertedServer]:
    """The recorded MiniGPT-v2 checkpoint, converted and served to holders of a key."""
    folder = tmp_path_factory.mktemp("converted")
    expected = convert_recorded(golden, "v2", folder / "v2")
    keys_file = folder / "keys.json"
    key = add_key(keys_file, "tests", KeyLimits())
    with running_server("--model", str(folder / "v2"), "--keys-file", str(keys_file)) as url:
        yield ConvertedServer(url, keys_file, key, expected)
