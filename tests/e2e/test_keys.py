"""Keys and their limits on a running server, whose counters are in one Ray actor."""

import time

import httpx
import pytest
from golden_chats import ConvertedServer
from processes import run

from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


def test_keys_limits_and_revocation_on_a_running_server(converted_v2: ConvertedServer) -> None:
    url = converted_v2.server.url
    file = converted_v2.keys_file
    guest = add_key(file, "guest", KeyLimits(requests_per_minute=3))
    with httpx.Client(base_url=url, timeout=60) as client:
        chat = "/v1/chat/completions"
        assert client.post(chat, json=HELLO).status_code == 401
        assert client.get("/health").status_code == 200
        headers = {"authorization": f"Bearer {guest}"}
        assert _until(client, headers, 200)  # the list of models doesn't count towards the limit
        answers = [client.post(chat, json=HELLO, headers=headers) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        made = run("keys", "add", "late", "--keys-file", str(file))
        late = {"authorization": f"Bearer {made.stdout.strip()}"}
        assert _until(client, late, 200)
        assert run("keys", "revoke", "late", "--keys-file", str(file)).returncode == 0
        assert _until(client, late, 401)


def _until(client: httpx.Client, headers: dict[str, str], status: int) -> bool:
    deadline = time.monotonic() + 60
    while client.get("/v1/models", headers=headers).status_code != status:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
