"""Requests of OpenAI's Responses API, as far as supported, and their conversion to chat completion requests."""

import re
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import Discriminator, Field, PrivateAttr, Tag, field_validator

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.openai.chat_request import (
    AnswerRules,
    ChatCompletionRequest,
    Function,
    ImagePart,
    JsonSchema,
    JsonSchemaFormat,
    Message,
    PlainFormat,
    RefusalPart,
    TextPart,
    ToolCall,
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


Part = Annotated[InputText | InputImage | RefusalPart, Field(discriminator="type")]


def _as_parts(value: Any) -> Any:
    """A plain string is one part."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _as_chat_parts(parts: list[Part]) -> list[Any]:
    """The parts of a chat completion request's message."""
    return [
        ImagePart(type="image_url", image_url=part.image_url)  # type: ignore[arg-type]  # the part's short form
        if isinstance(part, InputImage)
        else TextPart(type="text", text=part.text)
        if isinstance(part, InputText)
        else part
        for part in parts
    ]


class InputMessage(Wire):
    """One message of the input. The output item of an earlier answer is accepted unchanged."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    _parts = field_validator("content", mode="before", json_schema_input_type=str | list[Part])(_as_parts)

    def as_chat(self) -> Message:
        """The message of the chat completions API."""
        return Message(role=self.role, content=_as_chat_parts(self.content))


class FunctionCall(Wire):
    """A call of a tool in another model's answer; of a custom tool with ``input`` instead of ``arguments``."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: str
    name: str
    arguments: str = ""
    input: str = ""

    def as_chat(self) -> Message:
        """The message of the chat completions API."""
        function = Function(name=self.name, arguments=self.arguments or self.input)
        return Message(role="assistant", tool_calls=[ToolCall(id=self.call_id, function=function)])


class FunctionCallOutput(Wire):
    """What a tool returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: list[Part]

    _parts = field_validator("output", mode="before", json_schema_input_type=str | list[Part])(_as_parts)

    def as_chat(self) -> Message:
        """The message of the chat completions API."""
        return Message(role="tool", tool_call_id=self.call_id, content=_as_chat_parts(self.output))


class IgnoredItem(Wire):
    """An item without words of the conversation: another model's thoughts, or a record of what it did."""

    type: Literal[
        "compaction",
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_list_tools",
        "reasoning",
        "web_search_call",
    ]

    def as_chat(self) -> None:
        """None: no message stands for it."""


_ITEMS: dict[str, Any] = {
    name: kind
    for kind in (InputMessage, FunctionCall, FunctionCallOutput, IgnoredItem)
    for name in get_args(kind.model_fields["type"].annotation)
}


def _item_type(value: Any) -> str:
    """The class of an item, by its ``type``; a message may leave it out."""
    name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return str(_ITEMS.get(name or "message", InputMessage).__name__)


Item = Annotated[
    Annotated[InputMessage, Tag("InputMessage")]
    | Annotated[FunctionCall, Tag("FunctionCall")]
    | Annotated[FunctionCallOutput, Tag("FunctionCallOutput")]
    | Annotated[IgnoredItem, Tag("IgnoredItem")],
    Discriminator(_item_type),
]


class SchemaFormat(JsonSchema):
    """JSON that follows a schema, given beside the type."""

    type: Literal["json_schema"]


class TextOptions(Wire):
    """Text, any JSON object, or JSON that follows a schema."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] = Field(
        default_factory=lambda: PlainFormat(type="text")
    )


class ResponsesRequest(AnswerRules):
    """``POST /v1/responses``. ``input`` is the whole conversation, or continues that of ``previous_response_id``.

    With ``store``, the default, the response is kept for a while, so that later requests can refer to it.
    """

    input: list[Item] = Field(min_length=1, max_length=1023)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextOptions = Field(default_factory=TextOptions)
    include: list[str] = []
    truncation: Literal["auto", "disabled"] = "auto"
    metadata: Metadata = Field(default_factory=dict, max_length=16)
    store: bool = True
    previous_response_id: str | None = None

    @field_validator("input", mode="before", json_schema_input_type=str | list[Item])
    @classmethod
    def _as_messages(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @field_validator("input")
    @classmethod
    def _check_messages(cls, value: list[Item]) -> list[Item]:
        if all(isinstance(item, IgnoredItem) for item in value):
            raise ValueError("it holds no message")
        return value

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
        messages = [message for item in self.input if (message := item.as_chat()) is not None]
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
        if param is None or not param.startswith("input["):
            return param
        sources = [f"input[{i}]" for i, item in enumerate(self.input) if item.as_chat() is not None]
        if self.instructions is not None:
            sources.insert(0, "instructions")
        number, rest = param.removeprefix("input[").split("]", 1)
        source = sources[int(number)]
        return source if source == "instructions" else _without_earlier(source + rest, self._num_earlier)


_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}

# Fields that can't be honored → their values that request nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "text.verbosity": (None, "medium"),
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


def parse_responses_request(body: bytes | bytearray | dict[str, Any], history: History) -> ResponsesRequest:
    """The request in ``body``, with the items of earlier responses that it refers to.

    Args:
        body: as sent, or as ``read_json_object`` read it.

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
    request.as_chat().check_constraints()
    return request
