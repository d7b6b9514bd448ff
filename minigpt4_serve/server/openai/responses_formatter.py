"""Deltas → a response of the Responses API, whole or as named events."""

import time
from collections.abc import Callable
from typing import Any, Literal

from minigpt4_serve.errors import ContextLengthExceeded, EngineFailed, MiniGPT4Error
from minigpt4_serve.protocol import Delta, SamplingParams
from minigpt4_serve.server.openai.responses_request import ResponsesRequest
from minigpt4_serve.server.openai.responses_response import (
    ContentPartEvent,
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputItemEvent,
    OutputMessage,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    OutputTokensDetails,
    Reasoning,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseStateEvent,
    ResponseTextConfig,
    ResponseTextFormat,
    ResponseUsage,
    Status,
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

__all__ = ["ResponsesFormatter", "named_event"]


class ResponsesFormatter:
    """One answer as a response with one message of one text; see ``ResponseFormatter``.

    Args:
        answer_id: unique; the ids of response and message are made of it.
        sampling: the parameters that the engine uses.
        dropped_messages: messages whose text was dropped to fit the context.
        keep: called with the complete response.

    Raises:
        ContextLengthExceeded: messages were dropped, and the request forbids it.
    """

    def __init__(
        self,
        model: str,
        request: ResponsesRequest,
        answer_id: str,
        sampling: SamplingParams,
        dropped_messages: int,
        keep: Callable[[Response], None] | None = None,
    ) -> None:
        if request.truncation == "disabled" and dropped_messages:
            raise ContextLengthExceeded(
                "The input is too long for the model, and truncation is disabled.", param="input"
            )
        self._keep = keep
        self._dropped_messages = dropped_messages
        self._item_id = f"msg_{answer_id}"
        self._num_events = 0
        self._delta_template = self._make_delta_template()
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._response = Response(
            id=f"resp_{answer_id}",
            object="response",
            created_at=int(time.time()),
            background=False,
            error=None,
            incomplete_details=None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata,
            model=model,
            parallel_tool_calls=False,
            previous_response_id=request.previous_response_id,
            reasoning=Reasoning(effort=None, summary=None),
            store=False,
            temperature=sampling.temperature,
            text=ResponseTextConfig(format=_format(request)),
            tool_choice="none",
            tools=[],
            top_logprobs=request.top_logprobs or 0,
            top_p=sampling.top_p,
            truncation=request.truncation,
            usage=None,
            status="in_progress",
            output=[],
            **answer_hints(request.service_tier, store=False),
        )

    def collect(self, delta: Delta) -> None:
        """See ``ResponseFormatter``."""
        # SentencePiece puts a blank before the first word; the prompt already ends with one.
        self._text += delta.text if self._text else delta.text.lstrip()
        if delta.logprobs:
            self._logprobs += token_logprobs(delta)

    def whole(self, last: Delta) -> Response:
        """See ``ResponseFormatter``."""
        self._text = self._text.rstrip()
        return self._finished(last)

    def opening(self) -> str:
        """See ``ResponseFormatter``."""
        return "".join(
            (
                self._state_event("created", self._response),
                self._state_event("in_progress", self._response),
                self._item_event("added", self._item("in_progress", [])),
                self._part_event("added"),
            )
        )

    def delta_event(self, delta: Delta) -> str:
        """See ``ResponseFormatter``."""
        start = len(self._text)
        num_logprobs = len(self._logprobs)
        self.collect(delta)
        if len(self._text) == start:
            return ""
        logprobs = self._logprobs[num_logprobs:]
        return self._delta_template.fill(
            str(self._next_number()), encode_json(self._text[start:]), encode_json(logprobs) if logprobs else "[]"
        )

    def closing(self, last: Delta) -> str:
        """See ``ResponseFormatter``."""
        response = self._finished(last)
        fields = self._part_fields("output_text.done")
        return "".join(
            (
                named_event(OutputTextDone(**fields, text=self._text, logprobs=self._logprobs)),
                self._part_event("done"),
                self._item_event("done", response.output[0]),
                self._state_event(response.status, response),
            )
        )

    def failure(self, error: MiniGPT4Error) -> str:
        """See ``ResponseFormatter``."""
        failed = self._response.model_copy(
            update={
                "status": "failed",
                "error": ResponseError(code="server_error", message=error.message),
                "output": self._output("incomplete"),
            }
        )
        return self._state_event("failed", failed)

    def _finished(self, last: Delta) -> Response:
        """The response at its end; it is incomplete if it reached its maximum length."""
        if last.finish_reason == "abort":
            raise EngineFailed("The answer was cut short; ask again.")
        usage = last.usage
        assert usage is not None, "the engine's last delta carries the usage"
        incomplete = last.finish_reason == "length"
        status: Status = "incomplete" if incomplete else "completed"
        update: dict[str, Any] = {
            "status": status,
            "incomplete_details": IncompleteDetails(reason="max_output_tokens") if incomplete else None,
            "output": self._output(status),
            "usage": ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens, cache_write_tokens=0),
                output_tokens=usage.completion_tokens,
                output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
            ),
        }
        if last.timings:
            update["timings"] = answer_timings(last.timings)
        if self._dropped_messages:
            update["dropped_messages"] = self._dropped_messages
        response = self._response.model_copy(update=update)
        if self._keep is not None:
            self._keep(response)
        return response

    def _output(self, status: Status) -> list[OutputItem]:
        return [self._item(status, [self._part()])]

    def _part(self) -> OutputText:
        return OutputText(type="output_text", text=self._text, annotations=[], logprobs=self._logprobs)

    def _item(self, status: Status, parts: list[OutputText]) -> OutputMessage:
        return OutputMessage(id=self._item_id, type="message", role="assistant", status=status, content=parts)

    def _state_event(self, state: str, response: Response) -> str:
        return named_event(ResponseStateEvent(**self._event_fields(state), response=response))

    def _item_event(self, state: Literal["added", "done"], item: OutputItem) -> str:
        return named_event(OutputItemEvent(**self._event_fields(f"output_item.{state}"), output_index=0, item=item))

    def _part_event(self, state: Literal["added", "done"]) -> str:
        return named_event(ContentPartEvent(**self._part_fields(f"content_part.{state}"), part=self._part()))

    def _make_delta_template(self) -> EventTemplate:
        placeholder = EventTemplate.PLACEHOLDER
        event = OutputTextDelta(
            type="response.output_text.delta",
            sequence_number=-1,
            item_id=self._item_id,
            output_index=0,
            content_index=0,
            delta=placeholder,
            logprobs=[],
        )
        return EventTemplate(event, event.sequence_number, placeholder, event.logprobs, name=event.type)

    def _part_fields(self, name: str) -> dict[str, Any]:
        return {**self._event_fields(name), "item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event_fields(self, name: str) -> dict[str, Any]:
        return {"type": f"response.{name}", "sequence_number": self._next_number()}

    def _next_number(self) -> int:
        number = self._num_events
        self._num_events += 1
        return number


def _format(request: ResponsesRequest) -> ResponseTextFormat:
    given = request.text.format.model_dump(by_alias=True)
    return ResponseTextFormat(**{name: value for name, value in given.items() if value is not None})


def named_event(event: ResponseEvent) -> str:
    """An event under its type's name."""
    return server_sent_event(event, name=event.type)
