"""A client generated from /openapi.json talks to the server: nothing about it was written by hand."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from serving_app import serving
from uv_command import run_uv

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

SCRIPT = """
import sys
from generated import AuthenticatedClient, Client
from generated.api.default import chat_completions, health, models, responses
from generated.models import ChatCompletionsChatCompletionRequest as Chat
from generated.models import ErrorResponse, ResponsesResponsesRequest as Ask

url = sys.argv[1]
client = AuthenticatedClient(base_url=url, token="sesame")
assert health.sync(client=Client(base_url=url)).status == "ok"
(card,) = models.sync(client=client).data
assert card.id == "small" and card.max_model_len == 512
parts = [{"type": "text", "text": "Hello"}]
for content in ("Hello", parts):
    for stop in ("zork", ["zork"]):
        asked = {"messages": [{"role": "user", "content": content}], "stop": stop, "max_tokens": 4, "logprobs": True}
        body = Chat.from_dict(asked)
        assert body.to_dict() | asked == body.to_dict()
        answer = chat_completions.sync(client=client, body=body)
        assert answer.usage.completion_tokens <= 4
        assert len(answer.choices[0].logprobs.content) <= 4
for asked in ("Hello", [{"role": "user", "content": "Hello"}]):
    answer = responses.sync(client=client, body=Ask.from_dict({"input": asked, "max_output_tokens": 4}))
    assert answer.store is False and answer.output[0].content[0].type_ == "output_text"
refused = chat_completions.sync(client=client, body=Chat.from_dict({"messages": []}))
assert isinstance(refused, ErrorResponse) and refused.error.param == "messages"
refused = models.sync_detailed(client=AuthenticatedClient(base_url=url, token="wrong"))
assert refused.status_code == 401
print("done")
"""


def test_a_generated_client_calls_every_api(small_model: Any, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run_uv("venv", environment)
    programs = environment / "bin"
    run_uv("pip", "install", "--python", programs / "python", "openapi-python-client>=0.28")
    with serving(small_model, api_key="sesame") as (client, _):
        document = tmp_path / "openapi.json"
        document.write_bytes(client.get("/openapi.json").content)
        generated = subprocess.run(
            [
                programs / "openapi-python-client",
                *("generate", "--path", document, "--output-path", tmp_path / "generated", "--meta", "none"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "will not be generated" not in generated.stdout + generated.stderr
        used = subprocess.run(
            [programs / "python", "-c", SCRIPT, str(client.base_url)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert used.returncode == 0, used.stderr
    assert used.stdout == "done\n"
