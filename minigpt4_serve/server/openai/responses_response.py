"""Responses as OpenAI's Responses API gives them, and the events that stream one."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from minigpt4_serve.server.openai.wire import AnswerTimings, ResponseModel, TokenLogprobs

__all__ = [
    "ContentPartEvent",
    "FunctionCallArgumentsDelta",
    "FunctionCallArgumentsDone",
    "FunctionCallItem",
    "IncompleteDetails",
    "InputTokensDetails",
    "OutputItem",
    "OutputItemEvent",
    "OutputMessage",
    "OutputText",
    "OutputTextDelta",
    "OutputTextDone",
    "OutputTokensDetails",
    "Reasoning",
    "Response",
    "ResponseError",
    "ResponseEvent",
    "ResponseStateEvent",
    "ResponseTextConfig",
    "ResponseTextFormat",
    "ResponseUsage",
    "Status",
]

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(ResponseModel):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: TokenLogprobs


class OutputMessage(ResponseModel):
    """An answer in words."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class FunctionCallItem(ResponseModel):
    """A call that the request forced; ``arguments`` are JSON text."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = OutputMessage | FunctionCallItem


class ResponseError(ResponseModel):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(ResponseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class Reasoning(ResponseModel):
    """Always null: the models don't reason."""

    effort: None
    summary: None


class ResponseTextFormat(ResponseModel):
    """The format of the request; ``name`` and ``schema`` with ``json_schema`` only."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    type: Literal["text", "json_object", "json_schema"]


class ResponseTextConfig(ResponseModel):
    """The text options of the request."""

    format: ResponseTextFormat


class InputTokensDetails(ResponseModel):
    """Prompt tokens that were found in the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(ResponseModel):
    """Always 0."""

    reasoning_tokens: int


class ResponseUsage(ResponseModel):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(ResponseModel):
    """A response in any state. Beyond OpenAI's: ``timings``, and ``dropped_messages`` if the chat was truncated."""

    model_config = ConfigDict(title="ResponseObject")  # generated clients have a class "Response" of their own

    id: str
    object: Literal["response"]
    created_at: int
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    parallel_tool_calls: Literal[False]
    previous_response_id: str | None
    reasoning: Reasoning
    store: Literal[False]
    temperature: float
    text: ResponseTextConfig
    tool_choice: str | dict[str, str]
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    status: Status
    output: list[OutputItem]
    timings: AnswerTimings | None = None
    dropped_messages: int | None = None
    service_tier: Literal["default"] | None = None


class ResponseEvent(ResponseModel):
    """An event of a stream, numbered from 0."""

    type: str
    sequence_number: int


class ResponseStateEvent(ResponseEvent):
    """``response.created``, ``.in_progress``, ``.completed``, ``.incomplete``, ``.failed``."""

    response: Response


class OutputItemEvent(ResponseEvent):
    """``response.output_item.added`` and ``.done``."""

    output_index: int
    item: OutputItem


class FunctionCallArgumentsDelta(ResponseEvent):
    """``response.function_call_arguments.delta``."""

    item_id: str
    output_index: int
    delta: str


class FunctionCallArgumentsDone(ResponseEvent):
    """``response.function_call_arguments.done``."""

    item_id: str
    output_index: int
    name: str
    arguments: str


class _PartEvent(ResponseEvent):
    item_id: str
    output_index: int
    content_index: int


class ContentPartEvent(_PartEvent):
    """``response.content_part.added`` and ``.done``."""

    part: OutputText


class OutputTextDelta(_PartEvent):
    """``response.output_text.delta``."""

    delta: str
    logprobs: TokenLogprobs


class OutputTextDone(_PartEvent):
    """``response.output_text.done``."""

    text: str
    logprobs: TokenLogprobs
