"""The original's checkpoints, converted and served, give the recorded answers to OpenAI's client."""

from pathlib import Path
from typing import Any

import openai
import pytest
from golden_chats import ConvertedServer, chats, convert_recorded
from processes import running_server

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


def test_converted_v2_serves_the_originals_answers(converted_v2: ConvertedServer, golden: Path) -> None:
    _compare_answers(converted_v2.server.url, converted_v2.key, "v2", converted_v2.expected, golden)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["v1_vicuna", "v1_llama2"])
def test_converted_v1_serves_the_originals_answers(golden: Path, tmp_path: Path, variant: str) -> None:
    expected = convert_recorded(golden, variant, tmp_path / variant)
    with running_server("--model", str(tmp_path / variant)) as url:
        _compare_answers(url, "none", variant, expected, golden)


def _compare_answers(url: str, key: str, variant: str, expected: dict[str, Any], golden: Path) -> None:
    asked = chats(expected, golden)
    assert len(asked) >= 7
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120) as client:
        (card,) = client.models.list().data
        assert card.id == variant
        assert (card.model_extra or {})["image_tokens"] == expected["image_tokens"]
        for messages, results in asked:
            recorded = results["greedy"]
            limit = recorded["kwargs"]["max_new_tokens"]
            answer = client.chat.completions.create(
                model=variant,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=limit,
                extra_body={"repetition_penalty": 1.0},
            )
            assert answer.choices[0].message.content == recorded["stored_message"]
        # With the demo's own penalty, streamed: the last chat is v2's "[refer]" or a picture shown later.
        messages, results = asked[-1]
        stream = client.chat.completions.create(
            model=variant,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=limit,
            stream=True,
            extra_body={"repetition_penalty": 1.05},
        )
        chunks = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(chunks) == results["greedy_rp105"]["stored_message"]
