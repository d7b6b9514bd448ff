"""Requests of OpenAI's chat completions API, as far as this server supports it.

Unknown fields are ignored, as OpenAI does. Known ones that this server can't honor are refused by name: an answer that
silently ignores a request for audio or web search is worse than an error.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.json_schema import PreparedSchema, prepare_schema
from minigpt4_serve.server.openai.tool_calls import ForcedCall, read_forced_call

__all__ = [
    "MAX_BEAMS",
    "AnswerRules",
    "ChatCompletionRequest",
    "ImagePart",
    "JsonSchemaFormat",
    "Message",
    "PlainFormat",
    "StreamOptions",
    "TextPart",
    "Wire",
    "parse_chat_request",
    "parse_request",
]

_MAX_MESSAGES = 1024
_MAX_VALUES = 50_000  # in a request's JSON: parsing millions takes seconds and gigabytes, and no chat needs them


class Wire(BaseModel):
    """A JSON object that a client sends: strict about types; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(Wire):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageURL(Wire):
    """An image: a ``data:`` URL, or an https address if the server fetches any.

    ``detail`` is accepted and has no effect: the model has one resolution.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Wire):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL

    @field_validator("image_url", mode="before")
    @classmethod
    def _bare_string(cls, value: Any) -> Any:
        """Several clients send the URL itself instead of an object around it."""
        return {"url": value} if isinstance(value, str) else value


MAX_BEAMS = 10
"""Hypotheses of the widest beam search."""

Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Wire):
    """One message of the chat. ``developer`` is OpenAI's newer word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part] = []

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        """A plain string is one part; null (an assistant that only called tools) is none."""
        if value is None:
            return []
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class StreamOptions(Wire):
    """``include_usage`` asks for a last chunk with the usage and no choices."""

    include_usage: bool = False


class PlainFormat(Wire):
    """Free text, or (``json_object``) any JSON object."""

    type: Literal["text", "json_object"]


class JsonSchema(Wire):
    """A name that clients must give, and the schema that the answer follows, always strictly."""

    name: str = Field(default="answer", max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")


class JsonSchemaFormat(Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class AnswerRules(Wire):
    """Parameters of an answer, on any route. None falls back to the model's generation defaults.

    Beyond OpenAI's: ``min_tokens``, ``top_k``, ``min_p``, ``repetition_penalty``; ``timeout``, the seconds after which
    the request ends if its answer isn't complete.
    """

    model: str | None = None
    stream: bool = False
    min_tokens: int | None = Field(default=None, ge=0, le=2**31)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=4)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    timeout: float | None = Field(default=None, gt=0)
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        """OpenAI takes null for "not given" everywhere."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


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

    @property
    def num_images(self) -> int:
        """Images in all messages."""
        return sum(isinstance(part, ImagePart) for message in self.messages for part in message.content)

    @cached_property
    def forced_call(self) -> ForcedCall | None:
        """The call of a tool that the answer must be; see ``read_forced_call``."""
        return read_forced_call(self.tools, self.tool_choice)

    def check_tools(self) -> None:
        """Raise ``InvalidRequest`` if the tools or the choice among them can't be honored."""
        read_forced_call(self.tools, self.tool_choice)

    @cached_property
    def prepared_schema(self) -> PreparedSchema | None:
        """The schema that the answer must follow; None if it is free. Raises ``InvalidRequest``."""
        wanted = self.response_format
        if self.forced_call is not None:
            return prepare_schema(self.forced_call.schema)
        if isinstance(wanted, JsonSchemaFormat):
            return prepare_schema(wanted.json_schema.schema_)
        return prepare_schema({"type": "object"}) if wanted is not None and wanted.type == "json_object" else None

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
        """The field that holds this request's schema, for errors that name ``response_format``."""
        return "tools" if param == "response_format" and self.forced_call is not None else param


# Fields that can't be honored → their values that request nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0, 0.0),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

Request = TypeVar("Request", bound=AnswerRules)


def parse_chat_request(body: bytes | bytearray) -> ChatCompletionRequest:
    """The request in ``body``.

    Raises:
        InvalidRequest: not JSON, a wrong value, or an unsupported feature. ``param`` names the field.
    """
    request = parse_request(body, ChatCompletionRequest, _REFUSED, "messages")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    request.check_tools()
    return request


def parse_request(
    body: bytes | bytearray,
    kind: type[Request],
    refused: Mapping[str, tuple[Any, ...]],
    content: str,
    expand: Callable[[dict[str, Any]], object] = bool,
) -> Request:
    """The request in ``body``, of any API.

    Args:
        kind: its type.
        refused: fields that can't be honored → their values that request nothing.
        content: the required field, for error messages.
        expand: replaces references in the JSON object, before it is validated.

    Raises:
        InvalidRequest: as ``parse_chat_request``.
    """
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > _MAX_VALUES:
        raise InvalidRequest(f"The request's JSON holds more than {_MAX_VALUES} values; send a shorter chat.")
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest(f"The request body is not valid JSON. Send a JSON object with '{content}'.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The request body must be a JSON object with '{content}'.")
    for name, harmless in refused.items():
        if data.get(name) not in harmless:
            raise InvalidRequest(f"This server can't honor '{name}'; leave it out.", param=name)
    expand(data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> InvalidRequest:
    """The first error as one sentence with the field's path in OpenAI's notation, without the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = ""
    previous: int | str | None = None
    for step in first["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not isinstance(previous, int) or not path.rpartition(".")[2].startswith("content["):
            path += f".{step}" if path else step
        # else: the part's type, which pydantic puts between the index and the field
        previous = step
    return InvalidRequest(f"Invalid value for '{path}': {first['msg'][0].lower()}{first['msg'][1:]}.", param=path)
