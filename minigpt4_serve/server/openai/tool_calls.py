"""Tools that a request offers: which call it forces, the JSON that the answer then is, and how that is read.

The models choose no tools. Where the request leaves the choice (``auto``), they answer in words, as any model may.
Where it demands a call, the answer follows the JSON schema of the tool's parameters; among several tools the likeliest
is chosen.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt4_serve.errors import InvalidRequest

__all__ = ["CallReader", "ForcedCall", "Tool", "read_forced_call"]

_MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KINDS = ("function", "custom")


@dataclass(frozen=True)
class Tool:
    """A function with the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ForcedCall:
    """A call that the answer must be.

    Attributes:
        tools: those that may be called, at least one.
        named: the request names the tool; otherwise it only requires a call.
    """

    tools: tuple[Tool, ...]
    named: bool

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of the answer: the arguments of the only tool, or an object of ``name`` and ``arguments``."""
        if len(self.tools) == 1:
            return dict(self.tools[0].parameters)
        return {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{i}"}},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
                for i, tool in enumerate(self.tools)
            ],
            "$defs": {str(i): _move_references(tool.parameters, f"#/$defs/{i}") for i, tool in enumerate(self.tools)},
        }

    def as_responses_choice(self) -> str | dict[str, str]:
        """The ``tool_choice`` of the Responses API."""
        return {"type": "function", "name": self.tools[0].name} if self.named else "required"


class CallReader:
    """Reads a forced call from the answer's text as it is generated.

    Attributes:
        name: of the called tool; None until it is known.
        arguments: JSON text so far.
    """

    def __init__(self, call: ForcedCall) -> None:
        self._wrapped = len(call.tools) > 1
        self._beginnings = {f'{{"name": {json.dumps(tool.name)}, "arguments": ': tool.name for tool in call.tools}
        self._held = ""  # not known to be arguments
        self.name: str | None = None if self._wrapped else call.tools[0].name
        self.arguments = ""

    def feed(self, text: str, *, finish_reason: str | None = None) -> str:
        """Add text of the answer; returns what it adds to the arguments."""
        self._held += text
        if self.name is None:
            for beginning, name in self._beginnings.items():
                if self._held.startswith(beginning):
                    self.name = name
                    self._held = self._held.removeprefix(beginning)
        if self.name is None:
            return ""
        added = self._held
        self._held = ""
        if self._wrapped and finish_reason == "stop":
            added = added.removesuffix("}")
        elif self._wrapped and finish_reason is None:
            added, self._held = added[:-1], added[-1:]  # the last character may be the bracket of the whole
        if not self.arguments:
            added = added.lstrip()
        self.arguments += added
        return added


def read_forced_call(tools: Sequence[Any], choice: Any) -> ForcedCall | None:
    """The call that a request's ``tools`` and ``tool_choice`` force, in the form of either API; None if they don't.

    Raises:
        InvalidRequest: a tool that the server itself would have to run, or a choice that can't be honored; ``param``
            names the field.
    """
    if choice == "none":
        return None
    if len(tools) > _MAX_TOOLS:
        raise InvalidRequest(f"'tools' has {len(tools)} tools; at most {_MAX_TOOLS} are allowed.", param="tools")
    for tool in tools:
        if not isinstance(tool, Mapping) or tool.get("type") not in _KINDS:
            raise InvalidRequest(
                "This server can't honor 'tools' of other types than 'function' and 'custom'; leave them out.",
                param="tools",
            )
    names, named = _read_choice(choice)
    if names == []:
        return None
    functions = [_read_function(tool) for tool in tools if tool["type"] == "function"]
    if names is not None:
        functions = [tool for tool in functions if tool.name in names]
    if not functions:
        raise InvalidRequest(
            "'tool_choice' asks for a call of a function that 'tools' doesn't have.", param="tool_choice"
        )
    if len({tool.name for tool in functions}) < len(functions):
        raise InvalidRequest("Two of the 'tools' have the same name.", param="tools")
    return ForcedCall(tuple(functions), named)


def _read_choice(choice: Any) -> tuple[list[str] | None, bool]:
    """(names of which one is to be called, whether it's the only one); None for any name, an empty list for no call."""
    if choice in (None, "auto"):
        return [], False
    if choice in ("required", "any"):
        return None, False
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        name = _spec(choice).get("name")
        if isinstance(name, str):
            return [name], True
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if isinstance(allowed, Mapping) and isinstance(allowed.get("tools"), list):
            if allowed.get("mode") != "required":
                return [], False
            return [str(_spec(each).get("name")) for each in allowed["tools"] if isinstance(each, Mapping)], False
    raise InvalidRequest(
        "'tool_choice' must be 'none', 'auto', 'required', or an object that names a function of 'tools'.",
        param="tool_choice",
    )


def _read_function(tool: Mapping[str, Any]) -> Tool:
    spec = _spec(tool)
    name = spec.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            "Each of the 'tools' needs a name of letters, digits, '_', '-', '.' and ':'.", param="tools"
        )
    parameters = spec.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        raise InvalidRequest("The 'parameters' of each of the 'tools' must be a JSON schema.", param="tools")
    parameters = dict(parameters)
    if not parameters.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"}:
        parameters["type"] = "object"
    if parameters.get("type") == "object" and not parameters.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        parameters.setdefault("properties", {})  # a function without parameters is called with an empty object
    return Tool(name, parameters)


def _spec(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part with the name: the Responses API has it beside the type."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _move_references(schema: Any, root: str) -> Any:
    """The schema with references to its own parts, for the place ``root`` of a larger one."""
    if isinstance(schema, Mapping):
        return {
            name: root + value.removeprefix("#")
            if name == "$ref" and isinstance(value, str) and value.startswith("#")
            else _move_references(value, root)
            for name, value in schema.items()
        }
    return [_move_references(item, root) for item in schema] if isinstance(schema, list) else schema
