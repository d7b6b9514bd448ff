"""The original's files, converted, served by the real command and asked with OpenAI's client: the recorded answers."""

from pathlib import Path

import openai
import pytest
from golden_chats import VARIANTS, chats, convert_recorded
from processes import running_server

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_converted_folder_serves_the_originals_answers(golden: Path, tmp_path: Path, variant: str) -> None:
    expected = convert_recorded(golden, variant, tmp_path / variant)
    asked = chats(expected, golden)
    assert len(asked) >= 7
    with (
        running_server("--model", str(tmp_path / variant)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
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
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == results["greedy_rp105"]["stored_message"]
