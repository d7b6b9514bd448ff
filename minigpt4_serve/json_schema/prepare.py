"""Bounds of a client's JSON schema, and its form for llguidance. Imports neither torch nor llguidance.

An answer to the prepared schema follows the given one, but for the keywords in ``PreparedSchema.ignored`` and for
``oneOf``, whose branches are treated as those of ``anyOf``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from minigpt4_serve.errors import InvalidRequest

__all__ = ["PreparedSchema", "prepare_schema", "reject_schema"]

_MAX_CHARACTERS = 200_000  # of the schema as JSON, without annotations
_MAX_DEPTH = 40
_MAX_SCHEMAS = 1_000  # subschemas, all together
_MAX_ENUM = 2_000  # members of enums, all together
_MAX_ENUM_CHARACTERS = 50_000
_MAX_PATTERN = 1_000  # characters of one pattern
_MAX_REPETITION = 1_000  # in a pattern
_MAX_LENGTH = 4_096  # characters of a string: more than an answer has
_MAX_ITEMS = 1_024
_MAX_MULTIPLE = 10_000  # of the digits of ``multipleOf``
_MAX_COPRIME = 1_000  # of its part without the factors 2 and 5; the grammar has a state for each remainder
_MAX_DIGITS = 20  # of a number

_FORMATS = {
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "unknown",
    "uri",
    "uuid",
}
"""Formats that llguidance enforces. JSON Schema makes the others annotations."""

_NAME_PATTERNS = {
    "date": r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])$",
    "uuid": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
}
"""Patterns that stand for formats of properties' names."""

_UNSUPPORTED = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
)
_DROPPED = {
    "$comment",
    "default",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
    "x-guidance",  # would change how answers are written
}
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "additionalItems", "propertyNames", "unevaluatedProperties")
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref")  # may add properties to those beside them
_LOOK_AROUND = re.compile(r"\(\?<?[=!]|(?<!\\)(?:\\\\)*\\[bB1-9]")
_REPETITION = re.compile(r"\{(\d*)(?:,(\d*))?\}")


@dataclass(frozen=True)
class PreparedSchema:
    """A schema for the grammar compiler.

    Attributes:
        text: JSON.
        ignored: keywords that answers may not follow, sorted.
    """

    text: str
    ignored: tuple[str, ...] = ()


def reject_schema(reason: str) -> NoReturn:
    """Raise ``InvalidRequest`` with the reason, which names the keyword."""
    raise InvalidRequest(f"The JSON schema is not supported: {reason}", param="response_format")


def prepare_schema(schema: Mapping[str, Any]) -> PreparedSchema:
    """The schema in the form that is compiled. Preparing its ``text`` again changes nothing.

    * An object that lists properties has no others, unless ``additionalProperties`` is given.
    * Annotations such as ``description`` are dropped. ``format`` is kept where it is enforced, ``uniqueItems`` never.
    * ``propertyNames`` becomes properties or a pattern of them.
    * Branches of ``anyOf`` and ``oneOf`` whose pattern can't be compiled are left out while others remain.

    Raises:
        InvalidRequest: the schema exceeds a bound or uses a keyword that isn't supported; the message names it.
    """
    preparation = _Preparation(schema)
    text = json.dumps(preparation.convert(schema, depth=0, closed=True))
    if len(text) > _MAX_CHARACTERS:
        reject_schema(f"it has more than {_MAX_CHARACTERS} characters; send a smaller one.")
    return PreparedSchema(text, tuple(sorted(preparation.ignored)))


class _UnsupportedPattern(Exception):
    """A pattern that can't be compiled; ``args[0]`` is the reason."""


class _Preparation:
    """One schema's conversion, with its counters."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._num_schemas = 0
        self._num_enum = 0
        self._enum_characters = 0
        self._merges = _merges_objects(root)
        self.ignored: set[str] = set()

    def convert(self, schema: Any, *, depth: int, closed: bool) -> Any:
        """The prepared form of a subschema.

        Args:
            closed: an object that lists properties has no others; False inside ``allOf``, whose branches are merged.
        """
        try:
            return self._convert(schema, depth, closed)
        except _UnsupportedPattern as error:
            if depth > 0:
                raise
            reject_schema(str(error))

    def _convert(self, schema: Any, depth: int, closed: bool) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            reject_schema("a schema must be an object.")
        if depth > _MAX_DEPTH:
            reject_schema(f"it is nested more than {_MAX_DEPTH} levels deep.")
        self._num_schemas += 1
        if self._num_schemas > _MAX_SCHEMAS:
            reject_schema(f"it has more than {_MAX_SCHEMAS} subschemas ('properties', 'items', 'anyOf' …).")
        _check_types(schema)
        result = {name: value for name, value in schema.items() if name not in _DROPPED}
        self._check_values(result)
        self._check_numbers(result)
        self._rename_properties(result)
        if result.get("unevaluatedProperties") is False and not any(name in result for name in _APPLICATORS):
            result.setdefault("additionalProperties", False)
            del result["unevaluatedProperties"]
        has_own_properties = "properties" in result and not any(name in result for name in _APPLICATORS)
        if has_own_properties and closed and not self._merges and "additionalProperties" not in result:
            required = [name for name in result.get("required", ()) if isinstance(name, str)]
            result["properties"] = {**result["properties"]}
            for name in required:  # which may be any value, since nothing is said of it
                result["properties"].setdefault(name, True)
            result["additionalProperties"] = False
        self._convert_parts(result, depth + 1, closed)
        return result

    def _convert_parts(self, result: dict[str, Any], depth: int, closed: bool) -> None:
        for name in _SCHEMAS_BY_NAME:
            if name in result:
                if name == "patternProperties":
                    for pattern in result[name]:
                        _check_pattern(pattern)
                result[name] = {
                    key: self.convert(value, depth=depth, closed=True) for key, value in result[name].items()
                }
        for name in _LISTS_OF_SCHEMAS:
            if name in result:
                merged = name == "allOf" and len(result[name]) > 1
                result[name] = self._convert_list(result[name], depth, closed and not merged, name)
        for name in _SCHEMAS:
            value = result.get(name)
            if isinstance(value, list):  # items of drafts before 2020-12
                result[name] = [self.convert(item, depth=depth, closed=True) for item in value]
            elif value is not None:
                result[name] = self.convert(value, depth=depth, closed=True)

    def _convert_list(self, schemas: list[Any], depth: int, closed: bool, name: str) -> list[Any]:
        if name not in ("anyOf", "oneOf"):
            return [self.convert(schema, depth=depth, closed=closed) for schema in schemas]
        converted: list[Any] = []
        unsupported: _UnsupportedPattern | None = None
        for schema in schemas:
            try:
                converted.append(self.convert(schema, depth=depth, closed=closed))
            except _UnsupportedPattern as error:
                unsupported = error
        if unsupported is not None and not converted:
            raise unsupported
        return converted

    def _check_values(self, result: dict[str, Any]) -> None:
        for name in _UNSUPPORTED:
            if name in result:
                reject_schema(f"'{name}' can't be followed; leave it out.")
        reference = result.get("$ref")
        if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
            reject_schema("'$ref' must point into the schema itself ('#/$defs/…').")
        members = [*result["enum"]] if "enum" in result else []
        if "const" in result:
            members.append(result["const"])
        if members:
            self._num_enum += len(members)
            self._enum_characters += len(json.dumps(members))
            if self._num_enum > _MAX_ENUM or self._enum_characters > _MAX_ENUM_CHARACTERS:
                reject_schema(
                    f"'enum' and 'const' have more than {_MAX_ENUM} members or {_MAX_ENUM_CHARACTERS} characters."
                )
        if result.get("uniqueItems"):
            self.ignored.add("uniqueItems")
        result.pop("uniqueItems", None)
        if "format" in result and result["format"] not in _FORMATS:
            del result["format"]
        if "pattern" in result:
            result["pattern"] = _check_pattern(result["pattern"])

    def _check_numbers(self, result: dict[str, Any]) -> None:
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            value = result.get(name)
            if value is None or isinstance(value, bool):
                continue
            digits = Decimal(str(value))
            if len(format(digits, "f")) > _MAX_DIGITS + 2:
                reject_schema(f"'{name}' has more than {_MAX_DIGITS} digits.")
            if name == "multipleOf":
                _check_multiple(digits)
        for least, most, limit in (
            ("minLength", "maxLength", _MAX_LENGTH),
            ("minItems", "maxItems", _MAX_ITEMS),
            ("minProperties", "maxProperties", _MAX_ITEMS),
        ):
            if result.get(least, 0) > limit:
                reject_schema(f"'{least}' is larger than {limit}.")
            if most in result:
                result[most] = min(result[most], limit)

    def _rename_properties(self, result: dict[str, Any]) -> None:
        """``propertyNames`` as properties, if it lists names, or as a pattern of properties."""
        names = result.get("propertyNames")
        if names is None:
            return
        if names is True or names == {}:
            del result["propertyNames"]
            return
        names = self._resolve(names)
        value = result.get("additionalProperties", True)
        if result.get("properties") or result.get("patternProperties") or not isinstance(names, Mapping):
            reject_schema("'propertyNames' can't be followed beside 'properties'; leave it out.")
        if "enum" in names or "const" in names:
            members = names["enum"] if "enum" in names else [names["const"]]
            result["properties"] = {name: value for name in members if isinstance(name, str)}
        elif "pattern" in names:
            result["patternProperties"] = {names["pattern"]: value}
        elif "minLength" in names or "maxLength" in names:
            least = names.get("minLength", 0)
            most = names.get("maxLength", "")
            result["patternProperties"] = {f"^.{{{least},{most}}}$": value}
        elif names.get("format") in _NAME_PATTERNS:
            result["patternProperties"] = {_NAME_PATTERNS[names["format"]]: value}
        elif set(names) <= {"type", "title", "description", "format"} and names.get("format") not in _FORMATS:
            del result["propertyNames"]
            return
        else:
            reject_schema("'propertyNames' can't be followed; use 'enum' or 'pattern' in it.")
        del result["propertyNames"]
        result["additionalProperties"] = False

    def _resolve(self, schema: Any) -> Any:
        """The schema behind a reference into ``$defs``."""
        for _ in range(10):
            if not (isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str)):
                return schema
            target: Any = self._root
            for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
                target = target.get(step) if isinstance(target, Mapping) else None
            schema = target
        return schema


def _merges_objects(root: Any) -> bool:
    """Whether objects are merged: then a branch that is closed would exclude the properties of the others."""
    stack = [(root, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > 2 * _MAX_DEPTH:
            reject_schema(f"it is nested more than {_MAX_DEPTH} levels deep.")
        if isinstance(value, Mapping):
            several = isinstance(value.get("allOf"), list) and (len(value["allOf"]) > 1 or "properties" in value)
            if several or ("$ref" in value and "properties" in value):
                return True
            stack += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            stack += [(each, depth + 1) for each in value]
    return False


def _check_multiple(value: Decimal) -> None:
    """Check a ``multipleOf``. Factors 2 and 5 cost nothing, since they depend on the last digits only."""
    exponent = int(value.as_tuple().exponent)
    significant = int(value.scaleb(-exponent) if exponent < 0 else value)
    coprime = significant
    for factor in (2, 5):
        while coprime and coprime % factor == 0:
            coprime //= factor
    if not 0 < significant <= _MAX_MULTIPLE or coprime > _MAX_COPRIME:
        reject_schema(f"'multipleOf' must be positive and, read without its decimal point, at most {_MAX_COPRIME}.")


_TYPES = {"string", "integer", "number", "boolean", "null", "array", "object"}


def _check_types(schema: Mapping[str, Any]) -> None:
    """Check the types of keywords' values, so that the rest needn't."""
    kinds: dict[str, Any] = {
        **dict.fromkeys(_SCHEMAS_BY_NAME, Mapping),
        **dict.fromkeys((*_LISTS_OF_SCHEMAS, "enum", "required"), list),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), int),
        **dict.fromkeys(("minimum", "maximum", "multipleOf"), (int, float)),
        "pattern": str,
        "format": str,
        "$ref": str,
    }
    for name, kind in kinds.items():
        if name in schema and (not isinstance(schema[name], kind) or (kind is int and schema[name] < 0)):
            reject_schema(f"the value of '{name}' is invalid.")
    types = schema.get("type", [])
    if not all(isinstance(each, str) and each in _TYPES for each in (types if isinstance(types, list) else [types])):
        reject_schema("the value of 'type' is invalid.")


_WORD = r"(?:(?<!\\)[A-Za-z0-9_]|\\[dw]|\[(?:[A-Z]-[A-Z]|[a-z]-[a-z]|[0-9]-[0-9]|[A-Za-z0-9_])+\])"
_BEGINS_WITH_WORD = re.compile(_WORD + r"(?![?*]|\{0)")
_ENDS_WITH_WORD = re.compile(_WORD + r"(?:\+|\{[1-9]\d{0,3}(?:,\d{0,4})?\})?\Z")
_BOUNDED = re.compile(r"(\^?)(\\b)?(.*?)(\\b)?(\$?)", re.DOTALL)


def _replace_boundaries(pattern: str) -> str:
    r"""The pattern without ``\b`` at its ends, next to a word character; unchanged if that isn't so simple."""
    match = _BOUNDED.fullmatch(pattern)
    if match is None or not (match[2] or match[4]) or "|" in match[3]:
        return pattern
    start, boundary_before, body, boundary_after, end = match.groups(default="")
    if boundary_before and not _BEGINS_WITH_WORD.match(body):
        return pattern
    if boundary_after and not _ENDS_WITH_WORD.search(body):
        return pattern
    if boundary_before and not start:
        start = r"^(.*\W)?"
    if boundary_after and not end:
        end = r"(\W.*)?$"
    return start + body + end


def _check_pattern(pattern: str) -> str:
    """The pattern as it is compiled, if it is within bounds; may raise ``_UnsupportedPattern``."""
    if len(pattern) > _MAX_PATTERN:
        reject_schema(f"a 'pattern' has more than {_MAX_PATTERN} characters.")
    pattern = _replace_boundaries(pattern)
    if _LOOK_AROUND.search(pattern):
        raise _UnsupportedPattern(
            r"look-around, '\b' and back references in a 'pattern' can't be followed; write it without them."
        )
    for match in _REPETITION.finditer(pattern):
        if any(count and (len(count) > 6 or int(count) > _MAX_REPETITION) for count in match.groups()):
            reject_schema(f"a 'pattern' repeats more than {_MAX_REPETITION} times.")
    return pattern
