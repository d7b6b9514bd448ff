"""Deltas → chat completions, whole or as chunks."""

import time
from typing import Any, NamedTuple

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error
from minigpt4_serve.protocol import Delta, FinishReason
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest
from minigpt4_serve.server.openai.chat_response import (
    AnswerFinishReason,
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatUsage,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ChunkDelta,
    PromptTokensDetails,
)
from minigpt4_serve.server.openai.wire import (
    EventTemplate,
    TokenLogprob,
    answer_hints,
    answer_timings,
    encode_json,
    server_sent_event,
    token_logprobs,
)

__all__ = ["ChatFormatter", "make_choice"]

_DONE = "data: [DONE]\n\n"


class _Templates(NamedTuple):
    """Of a choice's chunks between the first and the last."""

    text: EventTemplate
    text_and_logprobs: EventTemplate


class ChatFormatter:
    """One answer to a chat completion request; see ``ResponseFormatter``.

    Args:
        answer_id: unique; the response's ``id`` is made of it.
        dropped_messages: messages whose text was dropped to fit the context.
    """

    def __init__(self, model: str, request: ChatCompletionRequest, answer_id: str, dropped_messages: int) -> None:
        options = request.stream_options
        self._reports_usage = options is not None and options.include_usage
        self._reports_logprobs = request.logprobs
        self._dropped_messages = dropped_messages
        self._hints = answer_hints(request.service_tier, store=request.store)
        self._head: dict[str, Any] = {"id": f"chatcmpl-{answer_id}", "created": int(time.time()), "model": model}
        self._templates: dict[int, _Templates] = {}  # of the choices that have begun
        self._texts = [""] * request.n
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(request.n)]
        self._finish_reasons: list[FinishReason | None] = [None] * request.n

    def collect(self, delta: Delta) -> None:
        """See ``ResponseFormatter``."""
        self._texts[delta.index] += delta.text
        self._logprobs[delta.index] += token_logprobs(delta)
        self._finish_reasons[delta.index] = delta.finish_reason or self._finish_reasons[delta.index]

    def whole(self, last: Delta) -> ChatCompletion:
        """See ``ResponseFormatter``."""
        if "abort" in self._finish_reasons:
            raise EngineFailed("The answer was cut short; ask again.")
        choices = [
            Choice(
                index=index,
                message=self.message(index, text),
                logprobs=ChoiceLogprobs(content=logprobs, refusal=None) if self._reports_logprobs else None,
                finish_reason=self.finish_reason(reason),
            )
            for index, (text, logprobs, reason) in enumerate(
                zip(self._texts, self._logprobs, self._finish_reasons, strict=True)
            )
        ]
        return ChatCompletion(
            **self._head, object="chat.completion", choices=choices, usage=_usage(last), **self._extras(last)
        )

    def message(self, index: int, text: str) -> AssistantMessage:
        """The message of a choice with all its text."""
        return AssistantMessage(role="assistant", content=text.strip(), refusal=None)

    def finish_reason(self, reason: FinishReason | None) -> AnswerFinishReason | None:
        """The finish reason that is reported."""
        return reason

    def opening(self) -> str:
        """See ``ResponseFormatter``: chunks have no event before the first."""
        return ""

    def delta_event(self, delta: Delta) -> str:
        """See ``ResponseFormatter``."""
        templates = self._templates.get(delta.index)
        if templates is None:
            return self._first_chunks(delta)
        if delta.finish_reason is not None:
            return self._chunks(delta, delta.text, [])
        if not delta.text:
            return ""
        if delta.logprobs:
            return templates.text_and_logprobs.fill(encode_json(delta.text), encode_json(token_logprobs(delta)))
        return templates.text.fill(encode_json(delta.text))

    def closing(self, last: Delta) -> str:
        """See ``ResponseFormatter``. An aborted answer ends in the finish reason ``abort``."""
        if not self._reports_usage:
            return _DONE
        chunk = self._chunk([], usage=_usage(last), **self._extras(last))
        return server_sent_event(chunk) + _DONE

    def failure(self, error: MiniGPT4Error) -> str:
        """See ``ResponseFormatter``."""
        return f"data: {encode_json(error.body())}\n\n{_DONE}"

    def _first_chunks(self, delta: Delta) -> str:
        # SentencePiece puts a blank before the first word; the prompt already ends with one.
        text = delta.text.lstrip()
        if not text and delta.finish_reason is None:
            return ""
        self._templates[delta.index] = self._make_templates(delta.index)
        return self._chunks(delta, text, [make_choice(delta.index, ChunkDelta(role="assistant", content=""))])

    def _make_templates(self, index: int) -> "_Templates":
        placeholder = EventTemplate.PLACEHOLDER
        choice = make_choice(index, ChunkDelta(content=placeholder))
        text = EventTemplate(self._chunk([choice]), placeholder)
        choice.logprobs = ChoiceLogprobs(content=[], refusal=None)
        return _Templates(text, EventTemplate(self._chunk([choice]), placeholder, []))

    def _chunks(self, delta: Delta, text: str, choices: list[ChunkChoice]) -> str:
        """Each of the ``choices``, the text and the finish reason as an event of its own.

        The log probabilities of the delta's tokens come with their text, or with the last event if they have none.
        """
        carrier = None
        if text:
            carrier = make_choice(delta.index, ChunkDelta(content=text))
            choices.append(carrier)
        if delta.finish_reason:
            choices.append(make_choice(delta.index, ChunkDelta(), delta.finish_reason))
        if not choices:
            return ""
        if delta.logprobs:
            (carrier or choices[-1]).logprobs = ChoiceLogprobs(content=token_logprobs(delta), refusal=None)
        return "".join(map(server_sent_event, self.chunks(choices, delta)))

    def chunks(self, choices: list[ChunkChoice], delta: Delta) -> list[ChatCompletionChunk]:
        """A chunk for each of a delta's choices; the last of the request has the timings."""
        chunks = [self._chunk([choice]) for choice in choices]
        if delta.usage is not None and not self._reports_usage:
            # A chunk without choices is sent only on request: some clients index the first choice blindly.
            chunks[-1] = self._chunk(choices[-1:], **self._extras(delta))
        return chunks

    def _chunk(self, choices: list[ChunkChoice], **fields: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._head, object="chat.completion.chunk", choices=choices, **fields)

    def _extras(self, last: Delta) -> dict[str, Any]:
        extras: dict[str, Any] = dict(self._hints)
        if last.timings:
            extras["timings"] = answer_timings(last.timings)
        if self._dropped_messages:
            extras["dropped_messages"] = self._dropped_messages
        return extras


def make_choice(index: int, delta: ChunkDelta, finish_reason: AnswerFinishReason | None = None) -> ChunkChoice:
    """A chunk's part of one choice."""
    return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=finish_reason)


def _usage(last: Delta) -> ChatUsage:
    usage = last.usage
    assert usage is not None, "the engine's last delta carries the usage"
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )
