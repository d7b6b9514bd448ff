"""What the OpenAPI document says of routes that read their bodies themselves. Knows wire types and FastAPI's words."""

from typing import Any

from minigpt4_serve.server.openai.chat_request import AnswerRules

__all__ = ["described"]

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_REFUSALS = {
    "400": "The request can't be understood, or asks for what can't be done; `param` names the field.",
    "401": "No key, or one that isn't known.",
    "404": "There is no such model.",
    "408": "The body didn't come, or the answer wasn't complete, in time.",
    "413": "The body or a picture has too many bytes.",
    "429": "The server is busy, or the key has used up its share; `Retry-After` says when to come back.",
    "503": "The engine is being replaced.",
}


def described(request: type[AnswerRules]) -> dict[str, Any]:
    """For ``openapi_extra`` of a route that reads a ``request`` and answers whole or in events."""
    schema = request.model_json_schema()
    body = _inlined(schema, schema.pop("$defs", {}))
    answers: dict[str, Any] = {
        status: {"description": why, "content": {"application/json": {"schema": _ERROR}}}
        for status, why in _REFUSALS.items()
    }
    answers["200"] = {
        "description": "The answer; with `stream`, as server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": answers,
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its parts in place: references would have to point into the whole document."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items() if name != "discriminator"}
