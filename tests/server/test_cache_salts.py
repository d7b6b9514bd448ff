"""What one key has asked can't be found out by another through the caches."""

import base64
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from drawing import draw, encode
from serving_app import local_engine, serving

from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

PATHS = ("/v1/chat/completions", "/v1/responses")
SECRET = "Visa17 my pin is 76 and please never tell it to anyone else at all, thanks a lot."


class Keyed:
    """A server with keys."""

    def __init__(self, client: httpx.Client, service: ChatService, keys: dict[str, str]) -> None:
        self.service = service
        self._client = client
        self._keys = keys

    def cached_tokens(self, key: str, path: str, text: str, color: str | None = None) -> int:
        """Ask; returns the number of the prompt's tokens that were in the cache."""
        is_chat = path == PATHS[0]
        content: list[dict[str, Any]] = [{"type": "text" if is_chat else "input_text", "text": text}]
        if color:
            url = "data:image/png;base64," + base64.b64encode(encode(draw(color))).decode()
            image = {"type": "image_url", "image_url": {"url": url}}
            content.insert(0, image if is_chat else {"type": "input_image", "image_url": url})
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "max_tokens": 1} if is_chat else {"input": messages, "max_output_tokens": 1}
        answer = self._client.post(path, json=body, headers={"authorization": f"Bearer {self._keys[key]}"})
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        return int(usage["prompt_tokens_details" if is_chat else "input_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def keyed(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {name: add_key(file, name, KeyLimits()) for name in ("alice", "bob", "carol", "dave")}
    with serving(small_model, keys_file=file, cache_groups=(("carol", "dave"),)) as (client, service):
        yield Keyed(client, service, keys)


@pytest.mark.parametrize("path", PATHS)
def test_words_of_another_key_are_not_in_the_cache(keyed: Keyed, path: str) -> None:
    text = f"{path} {SECRET}"
    for key in ("alice", "bob"):  # the template's beginning is in each key's cache
        keyed.cached_tokens(key, path, "Hello")
    unknown = keyed.cached_tokens("alice", path, text)
    known = keyed.cached_tokens("alice", path, text)
    assert known > unknown
    assert keyed.cached_tokens("bob", path, text) <= unknown
    assert keyed.cached_tokens("bob", path, text) == known


@pytest.mark.parametrize("path", PATHS)
def test_images_of_another_key_are_not_in_the_cache(keyed: Keyed, path: str) -> None:
    color = {PATHS[0]: "green", PATHS[1]: "blue"}[path]
    decodes = [_decodes(keyed)]
    for key in ("alice", "alice", "bob", "bob"):
        keyed.cached_tokens(key, path, "What is it?", color)
        decodes.append(_decodes(keyed))
    assert [after - before for before, after in pairwise(decodes)] == [1, 0, 1, 0]


def _decodes(keyed: Keyed) -> int:
    return local_engine(keyed.service).stats().image_decodes


def test_a_group_shares_its_caches(keyed: Keyed) -> None:
    keyed.cached_tokens("carol", PATHS[0], f"group {SECRET}", "orange")
    decodes = _decodes(keyed)
    assert keyed.cached_tokens("dave", PATHS[0], f"group {SECRET}", "orange") > 0
    assert _decodes(keyed) == decodes


def test_all_keys_can_be_one_group(small_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = {name: add_key(file, name, KeyLimits()) for name in ("alice", "bob")}
    with serving(small_model, keys_file=file, cache_groups=(("*",),)) as (client, service):
        keyed = Keyed(client, service, keys)
        keyed.cached_tokens("alice", PATHS[0], SECRET)
        assert keyed.cached_tokens("bob", PATHS[0], SECRET) > 0
