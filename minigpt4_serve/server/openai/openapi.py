"""The OpenAPI document: of routes that read their request bodies themselves, and of keys."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel

from minigpt4_serve.server.openai.wire import ErrorResponse, ResponseModel

__all__ = ["answer_responses", "declare_keys", "request_body"]

_ERRORS = {
    400: "The request can't be understood, or asks for what can't be done; `param` names the field.",
    401: "No key, or an unknown one.",
    404: "There is no such model.",
    408: "The body didn't arrive, or the answer wasn't complete, in time.",
    413: "The body or an image has too many bytes.",
    429: "The server is busy, or the key's quota is used up; `Retry-After` says when to try again.",
    503: "The engine is being replaced.",
}


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """For ``openapi_extra`` of a route that reads a ``model``."""
    schema = model.model_json_schema()
    body = _inline_references(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def answer_responses(whole: type[ResponseModel], event: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For ``responses`` of a route that answers ``whole`` or, with ``stream``, in events."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": description} for status, description in _ERRORS.items()
    }
    responses[200] = {
        "model": whole,
        "description": f"The answer; with `stream`, server-sent events with a `{event.__name__}` each.",
        "content": {"text/event-stream": {}},
    }
    return responses


def declare_keys(document: dict[str, Any], *, required: bool, open_paths: Collection[str]) -> None:
    """Declare in a document how keys are sent.

    Args:
        required: the server has keys; without them requests need none.
        open_paths: need no key in any case.
    """
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"bearer": []}, {"header": []}] + ([] if required else [{}])
    for path in open_paths:
        for operation in document["paths"].get(path, {}).values():
            operation["security"] = []


def _inline_references(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its parts in place: references would have to point into the whole document."""
    if isinstance(schema, list):
        return [_inline_references(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline_references(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline_references(value, definitions) for name, value in schema.items() if name != "discriminator"}
