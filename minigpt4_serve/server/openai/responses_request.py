"""Requests of OpenAI's Responses API, as far as supported, and their conversion to chat completion requests."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.openai.chat_request import (
    AnswerRules,
    ChatCompletionRequest,
    ImagePart,
    JsonSchema,
    JsonSchemaFormat,
    Message,
    PlainFormat,
    TextPart,
    Wire,
    parse_request,
)

__all__ = ["ResponsesRequest", "parse_responses_request"]

Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]
"""OpenAI's limits: it is sent back, several times in a stream."""

LOGPROBS = "message.output_text.logprobs"


class InputText(Wire):
    """Text; ``output_text`` is that of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str


class InputImage(Wire):
    """An image: a ``data:`` URL, or an https address if the server fetches any. ``detail`` has no effect."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputMessage(Wire):
    """One message of the input. The output item of an earlier answer is accepted unchanged."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[InputText | InputImage, Field(discriminator="type")]]

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        return [{"type": "input_text", "text": value}] if isinstance(value, str) else value

    def as_chat(self) -> Message:
        """The message of the chat completions API."""
        parts = [
            ImagePart(type="image_url", image_url=part.image_url)  # type: ignore[arg-type]  # the part's short form
            if isinstance(part, InputImage)
            else TextPart(type="text", text=part.text)
            for part in self.content
        ]
        return Message(role=self.role, content=parts)


class SchemaFormat(JsonSchema):
    """JSON that follows a schema, given beside the type."""

    type: Literal["json_schema"]


class TextOptions(Wire):
    """Text, any JSON object, or JSON that follows a schema."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] = PlainFormat(type="text")


class ResponsesRequest(AnswerRules):
    """``POST /v1/responses``. Nothing is stored: ``input`` is the whole conversation."""

    input: list[InputMessage] = Field(min_length=1, max_length=1023)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextOptions = TextOptions()
    include: list[str] = []
    truncation: Literal["auto", "disabled"] = "auto"
    metadata: Metadata = Field(default={}, max_length=16)

    @field_validator("input", mode="before")
    @classmethod
    def _as_messages(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @property
    def logprobs(self) -> bool:
        """Whether log probabilities are requested."""
        return LOGPROBS in self.include

    def as_chat(self) -> ChatCompletionRequest:
        """The chat completion request; ``instructions`` become its first message."""
        messages = [message.as_chat() for message in self.input]
        if self.instructions is not None:
            words = TextPart(type="text", text=self.instructions)
            messages.insert(0, Message(role="system", content=[words]))
        wanted = self.text.format
        if isinstance(wanted, SchemaFormat):
            schema = JsonSchema.model_validate({"name": wanted.name, "schema": wanted.schema_})
            wanted_format: Any = JsonSchemaFormat(type="json_schema", json_schema=schema)
        else:
            wanted_format = wanted
        rules = {name: getattr(self, name) for name in AnswerRules.model_fields}
        return ChatCompletionRequest(
            messages=messages,
            max_tokens=self.max_output_tokens,
            logprobs=self.logprobs,
            response_format=wanted_format,
            **rules,
        )

    def rename_param(self, param: str | None) -> str | None:
        """The name of this request's field for that of the chat completion request, for error messages."""
        for chats, ours in _NAMES.items():
            if param is not None and param.startswith(chats):
                param = ours + param.removeprefix(chats)
        if param is None or not param.startswith("input[") or self.instructions is None:
            return param
        number, rest = param.removeprefix("input[").split("]", 1)
        return "instructions" if number == "0" else f"input[{int(number) - 1}]{rest}"


_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}

# Fields that can't be honored → their values that request nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "reasoning": (None, {}),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
}


def parse_responses_request(body: bytes | bytearray) -> ResponsesRequest:
    """The request in ``body``.

    Raises:
        InvalidRequest: not JSON, a wrong value, or an unsupported feature. ``param`` names the field.
    """
    request = parse_request(body, ResponsesRequest, _REFUSED, "input")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest(f"'top_logprobs' needs '{LOGPROBS}' in 'include'.", param="top_logprobs")
    return request
