"""Chat completions as OpenAI's API gives them: ``chat.completion`` and ``chat.completion.chunk``."""

from typing import Literal

from minigpt4_serve.protocol import FinishReason
from minigpt4_serve.server.openai.wire import AnswerTimings, ResponseModel, TokenLogprobs

__all__ = [
    "AnswerFinishReason",
    "AssistantMessage",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatUsage",
    "Choice",
    "ChoiceLogprobs",
    "ChunkChoice",
    "ChunkDelta",
    "ChunkToolCall",
    "FunctionCall",
    "FunctionDelta",
    "PromptTokensDetails",
    "ToolCall",
]

AnswerFinishReason = FinishReason | Literal["tool_calls"]


class FunctionCall(ResponseModel):
    """A function and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """A call that the request forced."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(ResponseModel):
    """The message of a choice."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChoiceLogprobs(ResponseModel):
    """Log probabilities of a choice's tokens."""

    content: TokenLogprobs
    refusal: None


class Choice(ResponseModel):
    """One of the ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: AnswerFinishReason | None


class PromptTokensDetails(ResponseModel):
    """Prompt tokens that were found in the prefix cache."""

    cached_tokens: int


class ChatUsage(ResponseModel):
    """Tokens of a request, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatCompletion(ResponseModel):
    """A whole answer. Beyond OpenAI's: ``timings``, ``dropped_messages`` of a truncated chat, ``store`` if given."""

    id: str
    created: int
    model: str
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: ChatUsage
    timings: AnswerTimings | None = None
    dropped_messages: int | None = None
    service_tier: Literal["default"] | None = None
    store: Literal[False] | None = None


class FunctionDelta(ResponseModel):
    """The function's name, in the first chunk of a call, and what a chunk adds to its arguments."""

    name: str | None = None
    arguments: str


class ChunkToolCall(ResponseModel):
    """A chunk's part of a call; ``id`` and ``type`` stand in the first one."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChunkDelta(ResponseModel):
    """What a chunk adds to a choice's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChunkChoice(ResponseModel):
    """A chunk's part of one choice."""

    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: AnswerFinishReason | None


class ChatCompletionChunk(ResponseModel):
    """One event of a streamed answer. The last has ``timings``; ``usage`` stands in a chunk without choices."""

    id: str
    created: int
    model: str
    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    timings: AnswerTimings | None = None
    dropped_messages: int | None = None
    service_tier: Literal["default"] | None = None
    store: Literal[False] | None = None
