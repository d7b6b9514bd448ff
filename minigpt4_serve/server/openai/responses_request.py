"""Requests of OpenAI's Responses API, as far as supported, and their conversion to chat completion requests."""

import re
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, PrivateAttr, field_validator

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
    """``POST /v1/responses``. ``input`` is the whole conversation, or continues that of ``previous_response_id``.

    With ``store``, the default, the response is kept for a while, so that later requests can refer to it.
    """

    input: list[InputMessage] = Field(min_length=1, max_length=1023)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextOptions = TextOptions()
    include: list[str] = []
    truncation: Literal["auto", "disabled"] = "auto"
    metadata: dict[str, str] = Field(default={}, max_length=16)
    store: bool = True
    previous_response_id: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _as_messages(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    _new_items: list[dict[str, Any]] = PrivateAttr(default=[])
    _num_earlier: int = PrivateAttr(default=0)

    def set_history(self, new_items: list[dict[str, Any]], num_earlier: int) -> None:
        """Set what isn't a field: the items that this request adds, and how many precede them."""
        self._new_items = new_items
        self._num_earlier = num_earlier

    @property
    def new_items(self) -> list[dict[str, Any]]:
        """The items that this request adds to the conversation, as JSON."""
        return self._new_items

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
        param = self.as_chat().rename_param(param)
        for chats, ours in _NAMES.items():
            if param is not None and param.startswith(chats):
                param = ours + param.removeprefix(chats)
        if param is None or not param.startswith("input[") or self.instructions is None:
            return _without_earlier(param, self._num_earlier)
        number, rest = param.removeprefix("input[").split("]", 1)
        named = "instructions" if number == "0" else f"input[{int(number) - 1}]{rest}"
        return _without_earlier(named, self._num_earlier)


_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}

# Fields that can't be honored → their values that request nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "reasoning": (None, {}),
}


class History(Protocol):
    """Earlier responses that a request may refer to. See ``recent_responses.KeyResponses``."""

    def items_until(self, response_id: str) -> list[dict[str, Any]]:
        """The conversation up to a response. Raises ``InvalidRequest`` if it isn't known."""

    def item(self, item_id: str, *, param: str) -> dict[str, Any]:
        """One item of it. Raises ``InvalidRequest`` for the field ``param`` if it isn't known."""


class _Expansion:
    """Replaces a request's references to earlier responses by their items.

    Attributes:
        new_items: the request's own items, references in them replaced.
        num_earlier: items of earlier responses, which precede them.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.new_items: list[dict[str, Any]] = []
        self.num_earlier = 0

    def expand(self, data: dict[str, Any]) -> None:
        """Replace the references in a request's JSON object."""
        items = data.get("input")
        if isinstance(items, str):
            items = [{"role": "user", "content": items}]
        if not isinstance(items, list):
            return  # validation names what is wrong
        self.new_items = [self._resolve(item, i) for i, item in enumerate(items)]
        earlier: list[dict[str, Any]] = []
        previous = data.get("previous_response_id")
        if isinstance(previous, str):
            earlier = self._history.items_until(previous)
        self.num_earlier = len(earlier)
        data["input"] = earlier + self.new_items

    def _resolve(self, item: Any, index: int) -> Any:
        if isinstance(item, dict) and item.get("type") == "item_reference" and isinstance(item.get("id"), str):
            return self._history.item(item["id"], param=f"input[{index}]")
        return item


def _without_earlier(param: str | None, num_earlier: int) -> str | None:
    """The name of an input item in the request as it was sent."""
    match = re.match(r"input\[(\d+)\]", param or "")
    if param is None or match is None or int(match[1]) < num_earlier:
        return param
    return f"input[{int(match[1]) - num_earlier}]{param[match.end() :]}"


def parse_responses_request(body: bytes | bytearray, history: History) -> ResponsesRequest:
    """The request in ``body``, with the items of earlier responses that it refers to.

    Raises:
        InvalidRequest: not JSON, a wrong value, or an unsupported feature. ``param`` names the field.
    """
    expansion = _Expansion(history)
    try:
        request = parse_request(body, ResponsesRequest, _REFUSED, "input", expansion.expand)
    except InvalidRequest as error:
        param = _without_earlier(error.param, expansion.num_earlier)
        if param is not None and error.param is not None:
            error.reword(error.message.replace(error.param, param))
        error.param = param
        raise
    request.set_history(expansion.new_items, expansion.num_earlier)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest(f"'top_logprobs' needs '{LOGPROBS}' in 'include'.", param="top_logprobs")
    request.as_chat().check_tools()
    return request
