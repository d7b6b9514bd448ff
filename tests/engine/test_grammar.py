"""Answers that follow a JSON schema: a model of random weights can't help it."""

import asyncio
import json
from typing import Any

import pytest
import torch
from engine_driving import collect, idle, prompt, running

from minigpt4_serve.engine.grammar import GrammarCompiler
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams

SHAPE = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "dark green", "blau ü"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 6},
        "round": {"type": "boolean"},
    },
    "required": ["color", "count", "note", "round"],
    "additionalProperties": False,
}
RULES = SamplingParams(max_tokens=150, temperature=1.5, json_schema=json.dumps(SHAPE), stop=())


async def test_constrained_answers_follow_the_schema_and_others_do_not(small_model: Any) -> None:
    asked = prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    with running(small_model, max_running=4, num_blocks=40) as engine:  # a cache so small that some are preempted
        free = SamplingParams(max_tokens=20)
        (expected,) = await collect(engine, asked, free, "free")
        shaped = [
            collect(engine, asked, RULES.__class__(**{**vars(RULES), "seed": seed, "n": 2}), f"r{seed}")
            for seed in range(5)
        ]
        *answers, (beside,) = await asyncio.gather(*shaped, collect(engine, asked, free, "beside"))
        await idle(engine)
        assert engine.stats().blocks_held == 0
    assert beside.ids == expected.ids
    texts = [whole for pair in answers for whole in pair]
    assert len({whole.text for whole in texts}) > 5
    for whole in texts:
        assert whole.finish_reason == "stop"
        found = json.loads(whole.text)
        assert list(found) == list(SHAPE["properties"])  # type: ignore[call-overload]
        assert found["color"] in ("red", "dark green", "blau ü")
        assert 0 <= found["count"] <= 99
        assert len(found["note"]) <= 6
        assert found["round"] in (True, False)


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "zork"}',
        '{"type": 5}',
        '{"not": {"type": "string"}}',
        '{"$ref": "https://example.com/schema.json"}',
        '{"$ref": "file:///etc/passwd"}',
        '{"properties": {"a": {"$ref": "#/nowhere"}}}',
        '{"pattern": "(?=x)"}',
        '{"properties": 5}',
        '{"properties": {"a": 5}}',
        "[]",
        "true",
    ],
)
def test_an_impossible_schema_is_refused_in_one_sentence(small_model: Any, schema: str) -> None:
    with pytest.raises(InvalidRequest, match="not supported") as refused:
        GrammarCompiler(small_model[1].tokenizer, [2], 512).compile(schema)
    assert refused.value.param == "response_format"


def test_tokens_without_text_are_never_allowed(small_model: Any) -> None:
    """Padding, unknown words and rows past the vocabulary would vanish from the text."""
    tokenizer = small_model[1].tokenizer
    size = tokenizer.vocab_size + 30
    grammars = GrammarCompiler(tokenizer, [2], size)
    grammar = grammars.compile('{"type": "string"}')
    (start,) = tokenizer.sentencepiece.encode('\n"')[-1:]
    first = grammars.forbidden([grammar, None], torch.device("cpu"))
    assert first.shape == (2, size)
    assert not first[1].any(), "no grammar forbids nothing"
    assert not first[0, start]
    grammar.accept(start)
    inside = grammars.forbidden([grammar], torch.device("cpu"))[0]
    assert not inside[tokenizer.sentencepiece.piece_to_id("a")]
    assert all(inside[i] for i in [0, 1, 2, *range(tokenizer.vocab_size, size)])
    other = grammar.fork()
    grammar.accept(start)
    assert grammar.finished
    assert not other.finished
    grammar.accept(start)  # whatever comes after the end is no error
    assert grammar.finished


def test_beams_do_not_follow_schemas() -> None:
    with pytest.raises(InvalidRequest, match="JSON schema"):
        SamplingParams(beams=2, json_schema="{}")


async def test_a_schema_too_complex_for_a_token_fails_the_request(
    small_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ends in the middle of its JSON must not look complete. Others are answered."""
    compile_schema = GrammarCompiler.compile

    def compile_and_exhaust(self: GrammarCompiler, schema: str) -> Any:
        grammar = compile_schema(self, schema)
        assert not grammar.failed
        grammar.accept(0)  # never allowed: the state in which llguidance is when it gives up
        assert grammar.failed
        return grammar

    asked = prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    with running(small_model) as engine:
        monkeypatch.setattr(GrammarCompiler, "compile", compile_and_exhaust)
        for n in (1, 2):
            rules = SamplingParams(**{**vars(RULES), "n": n})
            beside = asyncio.create_task(collect(engine, asked, SamplingParams(max_tokens=20), f"beside-{n}"))
            with pytest.raises(InvalidRequest, match="too complex") as refused:
                await collect(engine, asked, rules, f"shaped-{n}")
            assert refused.value.param == "response_format"
            assert (await beside)[0].finish_reason is not None
        await idle(engine)
        assert (engine.stats().running, engine.stats().blocks_held) == (0, 0)
