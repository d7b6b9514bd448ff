"""Chat completions as OpenAI's API gives them: ``chat.completion`` and ``chat.completion.chunk``."""

from typing import Literal

from minigpt4_serve.protocol import FinishReason
from minigpt4_serve.server.openai.wire import AnswerTimings, ResponseModel, TokenLogprobs

__all__ = [
    "AssistantMessage",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatUsage",
    "Choice",
    "ChoiceLogprobs",
    "ChunkChoice",
    "ChunkDelta",
    "PromptTokensDetails",
]


class AssistantMessage(ResponseModel):
    """The message of a choice."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChoiceLogprobs(ResponseModel):
    """Log probabilities of a choice's tokens."""

    content: TokenLogprobs
    refusal: None


class Choice(ResponseModel):
    """One of the ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


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


class ChunkDelta(ResponseModel):
    """What a chunk adds to a choice's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(ResponseModel):
    """A chunk's part of one choice."""

    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


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
