"""Answers that follow a JSON schema, even those of a model with random weights."""

import asyncio
import datetime
import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
import torch
from engine_driving import collect, make_prompt, running_engine, wait_until_idle

from minigpt4_serve.engine.grammar import GrammarCompiler
from minigpt4_serve.engine.json_progress import JsonProgress, TokenClasses
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import Turn
from minigpt4_serve.protocol import SamplingParams

SCHEMA = {
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
RULES = SamplingParams(max_tokens=150, temperature=1.5, json_schema=json.dumps(SCHEMA), stop=())


async def test_only_constrained_answers_follow_the_schema(small_model: Any) -> None:
    asked = make_prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    with running_engine(
        small_model, max_running=4, num_blocks=40
    ) as engine:  # a cache so small that some are preempted
        unconstrained = SamplingParams(max_tokens=20)
        (expected,) = await collect(engine, asked, unconstrained, "unconstrained")
        constrained = [
            collect(engine, asked, RULES.__class__(**{**vars(RULES), "seed": seed, "n": 2}), f"r{seed}")
            for seed in range(5)
        ]
        *answers, (beside,) = await asyncio.gather(*constrained, collect(engine, asked, unconstrained, "beside"))
        await wait_until_idle(engine)
        assert engine.stats().blocks_held == 0
    assert beside.ids == expected.ids
    texts = [whole for pair in answers for whole in pair]
    assert len({whole.text for whole in texts}) > 5
    for whole in texts:
        assert whole.finish_reason == "stop"
        found = json.loads(whole.text)
        assert list(found) == list(SCHEMA["properties"])  # type: ignore[call-overload]
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
def test_an_unsupported_schema_is_rejected(small_model: Any, schema: str) -> None:
    with pytest.raises(InvalidRequest, match="not supported") as rejected:
        GrammarCompiler(small_model[1].tokenizer, [2], 512).compile(schema)
    assert rejected.value.param == "response_format"


def test_tokens_without_text_are_never_allowed(small_model: Any) -> None:
    """Padding, unknown tokens and ids beyond the vocabulary don't appear in the text."""
    tokenizer = small_model[1].tokenizer
    size = tokenizer.vocab_size + 30
    grammars = GrammarCompiler(tokenizer, [2], size)
    grammar = grammars.compile('{"type": "string"}')
    (start,) = tokenizer.sentencepiece.encode('\n"')[-1:]
    first = grammars.forbidden([grammar, None], torch.device("cpu"))
    assert first.shape == (2, size)
    assert not first[1].any(), "a row without a grammar forbids nothing"
    assert not first[0, start]
    grammar.accept(start)
    inside = grammars.forbidden([grammar], torch.device("cpu"))[0]
    assert not inside[tokenizer.sentencepiece.piece_to_id("a")]
    assert all(inside[i] for i in [0, 1, 2, *range(tokenizer.vocab_size, size)])
    other = grammar.fork()
    grammar.accept(start)
    assert grammar.finished
    assert not other.finished
    grammar.accept(start)  # tokens after the end are ignored
    assert grammar.finished


def test_beam_search_rejects_schemas() -> None:
    with pytest.raises(InvalidRequest, match="JSON schema"):
        SamplingParams(beams=2, json_schema="{}")


async def test_a_schema_that_is_too_complex_fails_the_request(
    small_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ends in the middle of its JSON must not look complete. Other requests are answered."""
    compile_schema = GrammarCompiler.compile

    def compile_and_exhaust(self: GrammarCompiler, schema: str) -> Any:
        grammar = compile_schema(self, schema)
        assert not grammar.failed
        grammar.accept(0)  # never allowed: puts llguidance into the state in which it gives up
        assert grammar.failed
        return grammar

    asked = make_prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    with running_engine(small_model) as engine:
        monkeypatch.setattr(GrammarCompiler, "compile", compile_and_exhaust)
        for n in (1, 2):
            rules = SamplingParams(**{**vars(RULES), "n": n})
            beside = asyncio.create_task(collect(engine, asked, SamplingParams(max_tokens=20), f"beside-{n}"))
            with pytest.raises(InvalidRequest, match="too complex") as rejected:
                await collect(engine, asked, rules, f"constrained-{n}")
            assert rejected.value.param == "response_format"
            assert (await beside)[0].finish_reason is not None
        await wait_until_idle(engine)
        assert (engine.stats().running, engine.stats().blocks_held) == (0, 0)


class _Part(pydantic.BaseModel):
    name: str
    size: float


class _Tree(pydantic.BaseModel):
    word: str
    children: list["_Tree"] = []


TYPES = {
    "int": int,
    "float": float,
    "str": str,
    "set": set[int],
    "list": list[str],
    "dict": dict[str, int],
    "keys": dict[Literal["a", "b"], int],
    "path": Path,
    "secret": pydantic.SecretStr,
    "bytes": bytes,
    "date": datetime.date,
    "optional": int | None,
    "tuple": tuple[int, str],
    "union": int | str,
    "model": _Part,
    "models": list[_Part],
    "recursive": _Tree,
}


async def test_pydantic_schemas_end_in_valid_objects(small_model: Any) -> None:
    """The model's weights are random: nothing but the grammar and its closing brackets makes these end."""
    asked = make_prompt(small_model, [Turn("user", "What is it?", 1)], ["red"])
    models = {name: pydantic.create_model("Model", value=(kind, ...), words=(str, ...)) for name, kind in TYPES.items()}
    with running_engine(small_model, max_running=8, num_blocks=400) as engine:
        answers = await asyncio.gather(
            *(
                collect(
                    engine,
                    asked,
                    SamplingParams(
                        max_tokens=160,
                        temperature=1.0,
                        seed=1,
                        json_schema=json.dumps(model.model_json_schema()),
                        json_stop=("###",),
                    ),
                    name,
                )
                for name, model in models.items()
            )
        )
    for (name, model), (answer,) in zip(models.items(), answers, strict=True):
        assert answer.finish_reason == "stop", f"{name}: {answer.text}"
        model.model_validate_json(answer.text)


@pytest.mark.parametrize(
    ("text", "wants_end", "must_end", "permitted", "left"),
    [
        ('{"n": 3333333333333333', False, False, "3}", "}"),
        ('{"n": 3333333333333333', False, False, "3", "3"),
        ('{"n": 333', False, False, "3}", "3}"),
        ('{"n": 333', True, False, "3}", "}"),
        ('{"n": 1.5e12', False, False, "3}", "}"),
        ('{"n": -', True, False, "3", "3"),
        ('{"s": "red', True, False, 'r"', '"'),
        ('{"s": "red', False, True, 'r"', '"'),
        ('{"s": "red', True, False, "r", "r"),
        ('{"s": "', True, False, 'r"', 'r"'),
        ('{"s": "', False, True, 'r"', '"'),
        ('{"s": "a\\', False, True, 'r"', 'r"'),
        ('{"l": [1', True, False, "3,]", "]"),
        ('{"l": ["a"', True, False, ",]", "]"),
        ('{"l": ["a"', False, False, ",]", ",]"),
        ('{"l": [', False, True, "3]", "]"),
        ('{"o": {"a": 1', True, False, "3,}", ",}"),
        ('{"o": {"a": 1', False, True, "3,}", "}"),
        ('{"o": ', False, True, '{"', '"'),
        ('{"o": ', False, True, "{", "{"),
    ],
)
def test_what_is_open_is_closed(text: str, wants_end: bool, must_end: bool, permitted: str, left: str) -> None:
    """Of the characters that the grammar permits after the text, those that are left."""
    characters = '3r"]}{,'
    classes = TokenClasses([each.encode() for each in characters], [len(characters)])
    progress = JsonProgress()
    progress.feed(text.encode())
    mask = sum(1 << characters.index(each) for each in permitted)
    preferred = classes.preferred(progress, wants_end=wants_end, must_end=must_end)
    chosen = next((mask & each for each in preferred if mask & each), mask)
    assert {each for i, each in enumerate(characters) if chosen >> i & 1} == set(left)


def test_a_model_that_would_end_closes_its_string(small_model: Any) -> None:
    tokenizer = small_model[1].tokenizer
    grammars = GrammarCompiler(tokenizer, [2], tokenizer.vocab_size)
    pieces = tokenizer.sentencepiece
    ends = grammars.end_tokens(("###",))
    assert {2, *(i for i in range(pieces.vocab_size()) if pieces.id_to_piece(i).lstrip("▁").startswith("###"))} <= ends
    assert pieces.encode("\na")[-1] not in ends
    grammar = grammars.compile('{"type": "string"}')
    quote, first, second = (pieces.encode("\n" + text)[-1] for text in '"ab')
    grammar.accept(quote)
    grammar.accept(first)
    free, closing = (
        grammars.forbidden([grammar], torch.device("cpu"), wants_end=[wants_end])[0] for wants_end in (False, True)
    )
    assert (bool(free[quote]), bool(free[second])) == (False, False)
    assert (bool(closing[quote]), bool(closing[second])) == (False, True)
    grammars.close()
