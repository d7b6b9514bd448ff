"""Requests of OpenAI's chat completions API, as far as this server supports it.

Known fields that change the answer are honored or refused by name: an answer that silently ignores a request for audio
is worse than an error. Hints about storage, caching and users are accepted. Unknown fields are ignored, as OpenAI does.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.json_schema import PreparedSchema, prepare_schema
from minigpt4_serve.server.openai.tool_calls import ForcedCall, read_forced_call

__all__ = [
    "MAX_BEAMS",
    "REFUSED",
    "AnswerRules",
    "ChatCompletionRequest",
    "Function",
    "IgnoredPart",
    "ImagePart",
    "JsonSchemaFormat",
    "Message",
    "PlainFormat",
    "RefusalPart",
    "StreamOptions",
    "TextPart",
    "ToolCall",
    "Wire",
    "parse_chat_request",
    "parse_request",
    "read_json_object",
]

_MAX_MESSAGES = 1024
_MAX_VALUES = 50_000  # in a request's JSON: parsing millions takes seconds and gigabytes, and no chat needs them


class Wire(BaseModel):
    """A JSON object that a client sends: strict about types; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        """OpenAI takes null for "not given" everywhere."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class TextPart(Wire):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageURL(Wire):
    """An image: a ``data:`` URL, or an https address if the server fetches any.

    ``detail`` is accepted and has no effect: the model has one resolution.
    """

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Wire):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL

    @field_validator("image_url", mode="before", json_schema_input_type=str | ImageURL)
    @classmethod
    def _bare_string(cls, value: Any) -> Any:
        """Several clients send the URL itself instead of an object around it."""
        return {"url": value} if isinstance(value, str) else value


class RefusalPart(Wire):
    """The words with which a model refused to answer."""

    type: Literal["refusal"]
    refusal: str


class IgnoredPart(Wire):
    """Another model's thoughts, which aren't part of its answer."""

    type: Literal["thinking", "redacted_thinking", "reasoning"]


class Function(Wire):
    """A call of a function, as another model made it; ``arguments`` are JSON text or the object itself."""

    name: str = ""
    arguments: Any = ""


class ToolCall(Wire):
    """One call of a tool in an assistant's message."""

    id: str = ""
    function: Function = Field(default_factory=Function)


MAX_BEAMS = 10
"""Hypotheses of the widest beam search."""

Part = Annotated[TextPart | ImagePart | RefusalPart | IgnoredPart, Field(discriminator="type")]


class Message(Wire):
    """One message of the chat. ``developer`` is OpenAI's newer word for ``system``, ``tool`` for ``function``.

    The chat may be another model's: with calls of tools, their results and refusals, which are read as text.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: list[Part] = []
    refusal: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""
    name: str = ""

    @field_validator("content", mode="before", json_schema_input_type=str | list[Part] | None)
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        """A plain string is one part."""
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class StreamOptions(Wire):
    """``include_usage`` asks for a last chunk with the usage and no choices."""

    include_usage: bool = False


class PlainFormat(Wire):
    """Free text, or (``json_object``) any JSON object; with a schema, as other servers take it, one that follows it."""

    type: Literal["text", "json_object"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class JsonSchema(Wire):
    """A name that clients must give, and the schema that the answer follows, always strictly."""

    name: str = Field(default="answer", max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")


class JsonSchemaFormat(Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _parse_schema(value: Any) -> Any:
    """A JSON schema, given as an object or as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        raise ValueError("it isn't valid JSON") from None


Schema = Annotated[dict[str, Any], BeforeValidator(_parse_schema, json_schema_input_type=dict[str, Any] | str)]


class StructuredOutputs(Wire):
    """vLLM's way to ask for a JSON object (``json_object``) or for one that follows a schema (``json``)."""

    schema_: Schema | None = Field(default=None, alias="json")
    json_object: bool = False


StopString = Annotated[str, Field(max_length=256)]


class AnswerRules(Wire):
    """Parameters of an answer, on any route. None falls back to the model's generation defaults.

    Those named like an attribute of ``SamplingParams`` are passed to the engine as they are.

    Beyond OpenAI's: ``min_tokens``, ``ignore_eos``, ``top_k``, ``min_p``, ``repetition_penalty``; ``timeout``, the
    seconds after which the request ends if its answer isn't complete; ``structured_outputs`` and ``guided_json``, the
    JSON schemas of other servers.
    """

    model: str | None = None
    stream: bool = False
    min_tokens: int | None = Field(default=None, ge=0, le=2**31)
    ignore_eos: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = None
    stop: list[StopString] = Field(default=[], max_length=4)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    timeout: float | None = Field(default=None, gt=0)
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    service_tier: str | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"

    @field_validator("stop", mode="before", json_schema_input_type=str | list[StopString] | None)
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _drop_empty(cls, value: list[str]) -> list[str]:
        """An empty string stops nothing."""
        return [string for string in value if string]

    @field_validator("top_k")
    @classmethod
    def _minus_one_is_off(cls, value: int | None) -> int | None:
        """Other servers write -1 for "all tokens"."""
        return None if value is None else max(value, 0)


class ChatCompletionRequest(AnswerRules):
    """``POST /v1/chat/completions``.

    Beyond OpenAI's: ``beams`` is the number of hypotheses of a beam search instead of sampling (the best ``n`` are
    returned, all at the end), scored by log probability over length to the power of ``length_penalty``.
    """

    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=8)
    beams: int = Field(default=1, ge=1, le=MAX_BEAMS)
    length_penalty: float | None = Field(default=None, ge=-5, le=5)
    logprobs: bool = False
    response_format: Annotated[PlainFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    store: bool = False

    @property
    def num_images(self) -> int:
        """Images in all messages."""
        return sum(isinstance(part, ImagePart) for message in self.messages for part in message.content)

    @cached_property
    def forced_call(self) -> ForcedCall | None:
        """The call of a tool that the answer must be; see ``read_forced_call``."""
        return read_forced_call(self.tools, self.tool_choice)

    @cached_property
    def prepared_schema(self) -> PreparedSchema | None:
        """The schema that the answer must follow; None if it is free. Raises ``InvalidRequest``."""
        return None if self._constraint is None else prepare_schema(self._constraint[1])

    @property
    def json_schema(self) -> str | None:
        """The schema that the answer must follow, as JSON; None if it is free."""
        return None if self.prepared_schema is None else self.prepared_schema.text

    @property
    def notes(self) -> dict[str, str]:
        """Headers of the response that say which wishes have no effect."""
        found: dict[str, str] = {}
        if self.tools and self.tool_choice != "none" and self.forced_call is None:
            found["x-minigpt4-tool-choice"] = "none"  # the models choose no tools
        if self.prepared_schema is not None and self.prepared_schema.ignored:
            found["x-minigpt4-schema-ignored"] = ", ".join(self.prepared_schema.ignored)
        return found

    def rename_param(self, param: str | None) -> str | None:
        """The field that this request gave its schema in, for errors that name ``response_format``."""
        return self._constraint[0] if param == "response_format" and self._constraint is not None else param

    @property
    def _constraint(self) -> tuple[str, dict[str, Any]] | None:
        """(field, schema) of the only constraint that ``check_constraints`` leaves."""
        return next(iter(self._constraints().items()), None)

    def _constraints(self) -> dict[str, dict[str, Any]]:
        if self.forced_call is not None:
            return {"tools": self.forced_call.schema}  # a call that is demanded has no other form
        found: dict[str, dict[str, Any]] = {}
        wanted = self.response_format
        if isinstance(wanted, JsonSchemaFormat):
            found["response_format"] = wanted.json_schema.schema_
        elif wanted is not None and wanted.type == "json_object":
            found["response_format"] = wanted.schema_ or _ANY_OBJECT
        outputs = self.structured_outputs
        if outputs is not None and (outputs.schema_ is not None or outputs.json_object):
            found["structured_outputs"] = outputs.schema_ or _ANY_OBJECT
        if self.guided_json is not None:
            found["guided_json"] = self.guided_json
        return found

    def check_constraints(self) -> None:
        """Raise ``InvalidRequest`` if tools can't be honored or the answer would have to follow several schemas."""
        if len(found := list(self._constraints())) > 1:
            raise InvalidRequest(
                f"'{found[0]}' and '{found[1]}' both constrain the answer; give only one of them.", param=found[1]
            )


_ANY_OBJECT = {"type": "object"}
_NO_REASONING = [
    {**effort, **summary}
    for effort in ({}, {"effort": "none"})
    for summary in ({}, *({"summary": value} for value in ("auto", "concise", "detailed")))
]

REFUSED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "continue_final_message": (None, False),
    "ebnf": (None, ""),
    "echo": (None, False),
    "format": (None, ""),
    "grammar": (None, ""),
    "guided_choice": (None, []),
    "guided_grammar": (None, ""),
    "guided_regex": (None, ""),
    "include_stop_str_in_output": (None, False),
    "json_schema": (None, {}, ""),
    "logit_bias": (None, {}),
    "logits_processors": (None, []),
    "mirostat": (None, 0),
    "reasoning": (None, *_NO_REASONING),
    "reasoning_effort": (None, "none"),
    "regex": (None, ""),
    "repeat_penalty": (None, 1),
    "stop_token_ids": (None, []),
    "structural_tag": (None,),
    "structured_outputs.choice": (None, []),
    "structured_outputs.grammar": (None, ""),
    "structured_outputs.regex": (None, ""),
    "structured_outputs.structural_tag": (None,),
    "typical_p": (None, 1),
    "verbosity": (None, "medium"),
}
"""Fields that no route can honor → their values that request nothing. Many are those of other servers."""

# The same for this route only.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
}

Request = TypeVar("Request", bound=AnswerRules)


def parse_chat_request(body: bytes | bytearray | dict[str, Any]) -> ChatCompletionRequest:
    """The request in ``body``.

    Args:
        body: as sent, or as ``read_json_object`` read it.

    Raises:
        InvalidRequest: not JSON, a wrong value, or an unsupported feature. ``param`` names the field.
    """
    request = parse_request(body, ChatCompletionRequest, _REFUSED, "messages")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    request.check_constraints()
    return request


def read_json_object(body: bytes | bytearray, content: str) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Args:
        content: the required field, for error messages.

    Raises:
        InvalidRequest: not a JSON object, or one of too many values.
    """
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > _MAX_VALUES:
        raise InvalidRequest(f"The request's JSON holds more than {_MAX_VALUES} values; send a shorter chat.")
    try:
        encoding = json.detect_encoding(body)  # some clients send UTF-16, or begin with a byte order mark
        data = from_json(body if encoding == "utf-8" else body.decode(encoding), allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest(f"The request body is not valid JSON. Send a JSON object with '{content}'.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The request body must be a JSON object with '{content}'.")
    return data


def parse_request(
    body: bytes | bytearray | dict[str, Any],
    kind: type[Request],
    refused: Mapping[str, tuple[Any, ...]],
    content: str,
    expand: Callable[[dict[str, Any]], object] = bool,
) -> Request:
    """The request in ``body``, of any API.

    Args:
        body: as sent, or as ``read_json_object`` read it.
        kind: its type.
        refused: fields that can't be honored, besides ``REFUSED``, → their values that request nothing.
        content: see ``read_json_object``.
        expand: replaces references in the JSON object, before it is validated.

    Raises:
        InvalidRequest: as ``parse_chat_request``.
    """
    data = body if isinstance(body, dict) else read_json_object(body, content)
    for name, harmless in {**REFUSED, **refused}.items():
        if _look_up(data, name.split(".")) not in harmless:
            raise InvalidRequest(f"This server can't honor '{name}'; leave it out.", param=name)
    expand(data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error, data) from None


def _look_up(data: Any, path: Sequence[str]) -> Any:
    """The value at a path of names, objects without their nulls; None if there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


_TAGGED = ("content", "format", "input", "output", "response_format")
"""Fields with values of several types: in the location of an error, pydantic names the type after the field."""


def _explain(error: ValidationError, data: Any) -> InvalidRequest:
    """The first error as one sentence with the field's path in OpenAI's notation, without the value.

    Args:
        data: the JSON. Where it has a string in place of an object or a list, the path ends.
    """
    first = error.errors(include_input=False, include_url=False)[0]
    path = ""
    tag_follows = False
    for step in first["loc"]:
        if not isinstance(data, dict | list):
            break
        if isinstance(step, int):
            path += f"[{step}]"
        elif tag_follows:
            tag_follows = False
            continue
        else:
            path += f".{step}" if path else step
            tag_follows = step in _TAGGED
        # A missing field is the last step.
        data = data[step] if isinstance(step, int) and isinstance(data, list) else _look_up(data, [str(step)])
    is_object = first["type"] in ("dict_type", "model_type", "model_attributes_type")
    message = "it should be an object" if is_object else first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"Invalid value for '{path}': {message[0].lower()}{message[1:]}.", param=path)
