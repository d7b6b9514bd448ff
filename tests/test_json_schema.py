"""Schemas of clients: what is refused with its keyword's name, what is changed, and what a trial costs."""

import json
import re
import time
from typing import Any

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.json_schema import TrialCompiler, prepare_schema
from minigpt4_serve.json_schema.trial import TOO_COMPLEX, explain_verdict

LOOK_AHEAD = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # pydantic's Decimal


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "multipleOf": 999983}, "multipleOf"),
        ({"type": "integer", "multipleOf": 9999991}, "multipleOf"),
        ({"type": "number", "multipleOf": 99.9983}, "multipleOf"),
        ({"type": "integer", "multipleOf": 0}, "multipleOf"),
        ({"items": {"anyOf": [{"multipleOf": 99991}]}}, "multipleOf"),
        ({"type": "integer", "minimum": 10**30}, "minimum"),
        ({"type": "number", "maximum": 1e300}, "maximum"),
        ({"type": "string", "minLength": 10**6}, "minLength"),
        ({"type": "array", "minItems": 10**6}, "minItems"),
        ({"type": "object", "minProperties": 10**6}, "minProperties"),
        ({"enum": list(range(10_000))}, "enum"),
        ({"const": "x" * 100_000}, "const"),
        ({"type": "string", "pattern": "a" * 2000}, "pattern"),
        ({"type": "string", "pattern": "(a{1,10000})"}, "pattern"),
        ({"type": "string", "pattern": "a{99999999999}"}, "pattern"),
        ({"type": "string", "pattern": r"a\b+b"}, "pattern"),
        ({"type": "string", "pattern": r"\b(foo)?"}, "pattern"),
        ({"type": "string", "pattern": r"\bfoo|bar\b"}, "pattern"),
        ({"type": "string", "pattern": r"\s\b"}, "pattern"),
        ({"type": "string", "pattern": LOOK_AHEAD}, "pattern"),
        ({"anyOf": [{"type": "string", "pattern": LOOK_AHEAD}]}, "pattern"),
        ({"properties": {f"p{i}": {"type": "integer"} for i in range(3000)}}, "properties"),
        (_nested(200), "nested"),
        ({"enum": [json.loads("[" * 200 + "]" * 200)]}, "nested"),
        ({"$ref": "https://example.com/schema.json"}, r"\$ref"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "integer"}, "then": {"minimum": 3}}, "if"),
        ({"type": "array", "contains": {"type": "integer"}}, "contains"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "propertyNames": {"format": "date-time"}}, "propertyNames"),
        ({"properties": 5}, "properties"),
        ({"properties": {"a": 5}}, "object"),
        ({"type": "zork"}, "type"),
        ({"required": "a", "anyOf": {}}, "anyOf"),
        ({"type": "string", "maxLength": -1}, "maxLength"),
    ],
)
def test_what_cannot_be_followed_is_named(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"not supported: .*{named}") as refused:
        prepare_schema(schema)
    assert refused.value.param == "response_format"


@pytest.mark.parametrize(
    ("schema", "prepared"),
    [
        (
            {"properties": {"a": {"title": "A", "type": "integer", "default": 3}}, "title": "M", "type": "object"},
            {"properties": {"a": {"type": "integer"}}, "type": "object", "additionalProperties": False},
        ),
        ({"properties": {"title": {"type": "string"}}}, None),
        ({"properties": {}, "type": "object"}, None),
        (
            {"properties": {"a": {"type": "null"}}, "required": ["a", "b"]},
            {
                "properties": {"a": {"type": "null"}, "b": True},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {}),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, {}),
        ({"type": "string", "format": "date-time"}, {}),
        ({"type": "string", "format": "password"}, {"type": "string"}),
        ({"type": "string", "format": "path"}, {"type": "string"}),
        ({"type": "string", "format": "binary"}, {"type": "string"}),
        ({"type": "string", "maxLength": 10**6}, {"type": "string", "maxLength": 4096}),
        (
            {"anyOf": [{"type": "number"}, {"type": "string", "pattern": LOOK_AHEAD}]},
            {"anyOf": [{"type": "number"}]},
        ),
        (
            {"additionalProperties": {"type": "integer"}, "propertyNames": {"enum": ["a"]}, "type": "object"},
            {"additionalProperties": False, "properties": {"a": {"type": "integer"}}, "type": "object"},
        ),
        (
            {
                "$defs": {"C": {"enum": ["a"]}},
                "additionalProperties": {"type": "integer"},
                "propertyNames": {"$ref": "#/$defs/C"},
            },
            {"$defs": {"C": {"enum": ["a"]}}, "additionalProperties": False, "properties": {"a": {"type": "integer"}}},
        ),
        (
            {"additionalProperties": {"type": "integer"}, "propertyNames": {"pattern": "^a"}, "type": "object"},
            {"additionalProperties": False, "patternProperties": {"^a": {"type": "integer"}}, "type": "object"},
        ),
        (
            {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}]},
            {},
        ),
        ({"pattern": r"\bfoo\b"}, {"pattern": r"^(.*\W)?foo(\W.*)?$"}),
        ({"pattern": r"^\b[A-Z]{3}\b$"}, {"pattern": "^[A-Z]{3}$"}),
        ({"pattern": r"^\b\w+\b"}, {"pattern": r"^\w+(\W.*)?$"}),
        ({"type": "integer", "multipleOf": 10_000}, {}),
        ({"type": "integer", "x-guidance": {"whitespace_flexible": True}}, {"type": "integer"}),
    ],
)
def test_a_schema_is_prepared(schema: dict[str, Any], prepared: dict[str, Any] | None) -> None:
    """An empty expectation stands for the schema itself, None for the schema with ``additionalProperties: false``."""
    expected = {**schema, "additionalProperties": False} if prepared is None else prepared or schema
    once = prepare_schema(schema)
    assert json.loads(once.text) == expected
    assert prepare_schema(json.loads(once.text)).text == once.text


def test_unenforced_keywords_are_reported() -> None:
    assert prepare_schema({"type": "array", "uniqueItems": True}).ignored == ("uniqueItems",)
    assert prepare_schema({"type": "array", "uniqueItems": False}).ignored == ()


def test_long_descriptions_count_for_nothing() -> None:
    assert prepare_schema({"type": "boolean", "description": "Is it round? " * 100_000}).text == '{"type": "boolean"}'


def test_a_trial_ends_what_takes_too_long() -> None:
    """Given to the process as it is; ``prepare_schema`` refuses most of these before."""
    trials = TrialCompiler(1)
    try:
        assert trials.verdict('{"type": "integer"}') == ""
        first = trials._idle[0]
        assert first is not None
        assert trials.verdict('{"type": "integer", "multipleOf": 9999991}') == TOO_COMPLEX
        assert not first.alive, "the process goes on"
        assert trials.verdict('{"type": "boolean"}') == "", "the next schema gets a process of its own"
        started = time.process_time()
        assert trials.verdict('{"type": "integer", "multipleOf": 9999991}') == TOO_COMPLEX
        assert trials._idle[0] is not None
        assert trials._idle[0].alive, "a known verdict needs no process"
        assert time.process_time() - started < 0.2
    finally:
        last = trials._idle[0]
        trials.close()
        assert last is None or not last.alive


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "object", "properties": {"a": {}}, "maxProperties": 3}, "maxProperties"),
        ({"type": "array", "items": {"$ref": "#/nowhere"}}, "invalid"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "invalid|m..imum"),
    ],
)
def test_a_verdict_names_the_keyword(schema: dict[str, Any], named: str) -> None:
    trials = TrialCompiler(1)
    try:
        verdict = trials.verdict(json.dumps(schema))
        assert verdict
        reason = explain_verdict(verdict, json.dumps(schema))
    finally:
        trials.close()
    assert re.search(named, reason), reason
    assert len(reason) < 120, "quotes llguidance"
