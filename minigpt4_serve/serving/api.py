"""Wire types of the OpenAI API, as far as this server speaks it. Knows shapes and names only: no engine, no HTTP.

Unknown fields are ignored, as OpenAI does. Known ones that this server can't honour are refused by name: an answer that
silently ignores a request for tools or JSON is worse than an error.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from minigpt4_serve.errors import InvalidRequest

__all__ = [
    "MAX_BEAMS",
    "ChatCompletionRequest",
    "ImagePart",
    "Message",
    "StreamOptions",
    "TextPart",
    "parse_chat_request",
]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(_Wire):
    """Words of a message."""

    type: Literal["text"]
    text: str


class ImageURL(_Wire):
    """A picture: a ``data:`` URL. ``detail`` is accepted and has no effect: the model has one resolution."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Wire):
    """A picture of a message."""

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


class Message(_Wire):
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


class StreamOptions(_Wire):
    """``include_usage`` asks for a last chunk with the usage and no choices."""

    include_usage: bool = False


class ChatCompletionRequest(_Wire):
    """``POST /v1/chat/completions``. Fields that are None fall back to the model's own generation rules.

    Beyond OpenAI's: ``min_tokens``, ``top_k``, ``min_p``, ``repetition_penalty``; ``beams`` searches for the likeliest
    answer with so many hypotheses instead of sampling (the best ``n`` are given, all at once at the end), scored by log
    probability over length to the power of ``length_penalty``.
    """

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0)
    n: int = Field(default=1, ge=1, le=8)
    beams: int = Field(default=1, ge=1, le=MAX_BEAMS)
    length_penalty: float | None = Field(default=None, ge=-5, le=5)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=4)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @field_validator("stream", "n", "beams", "logprobs", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        """OpenAI takes null for "not given" everywhere."""
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value


# What can't be honoured, and the values of it that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0, 0.0),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}


def parse_chat_request(body: bytes) -> ChatCompletionRequest:
    """The request in ``body``.

    Raises:
        InvalidRequest: not JSON, not this shape, or it asks for what the server doesn't do. ``param`` names the field.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON. Send a JSON object with 'messages'.") from None
    if not isinstance(data, dict):
        raise InvalidRequest("The request body must be a JSON object with 'messages'.")
    for name, harmless in _REFUSED.items():
        if data.get(name) not in harmless:
            raise InvalidRequest(f"This server can't honour '{name}'; leave it out.", param=name)
    try:
        return ChatCompletionRequest.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> InvalidRequest:
    """The first complaint as one sentence with the field's path in OpenAI's notation, never the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    path, previous = "", None
    for step in first["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not isinstance(previous, int) or not path.rpartition(".")[2].startswith("content["):
            path += f".{step}" if path else step
        # else: the part's type, which pydantic puts between the index and the field
        previous = step
    return InvalidRequest(f"Invalid value for '{path}': {first['msg'][0].lower()}{first['msg'][1:]}.", param=path)
