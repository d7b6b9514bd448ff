"""Deltas → a response whose output is a call of a tool."""

from collections.abc import Callable

from minigpt4_serve.protocol import Delta, SamplingParams
from minigpt4_serve.server.openai.responses_formatter import ResponsesFormatter, named_event
from minigpt4_serve.server.openai.responses_request import ResponsesRequest
from minigpt4_serve.server.openai.responses_response import (
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    FunctionCallItem,
    OutputItem,
    Response,
    Status,
)
from minigpt4_serve.server.openai.tool_calls import CallReader, ForcedCall

__all__ = ["ResponsesToolFormatter"]


class ResponsesToolFormatter(ResponsesFormatter):
    """One answer to a request that forces a call; see ``ResponseFormatter``."""

    def __init__(
        self,
        model: str,
        request: ResponsesRequest,
        answer_id: str,
        sampling: SamplingParams,
        dropped_messages: int,
        keep: Callable[[Response], None] | None,
        call: ForcedCall,
    ) -> None:
        super().__init__(model, request, answer_id, sampling, dropped_messages, keep)
        self._response = self._response.model_copy(update={"tool_choice": call.as_responses_choice()})
        self._item_id = f"fc_{answer_id}"
        self._call_id = f"call_{answer_id}"
        self._reader = CallReader(call)
        self._announced = False

    def collect(self, delta: Delta) -> None:
        """See ``ResponseFormatter``."""
        self._reader.feed(delta.text, finish_reason=delta.finish_reason)

    def opening(self) -> str:
        """See ``ResponseFormatter``: the tool isn't known yet."""
        return self._state_event("created", self._response) + self._state_event("in_progress", self._response)

    def delta_event(self, delta: Delta) -> str:
        """See ``ResponseFormatter``."""
        arguments = self._reader.feed(delta.text, finish_reason=delta.finish_reason)
        events = ""
        if self._reader.name is not None and not self._announced:
            self._announced = True
            events += self._item_event("added", self._call_item("in_progress", ""))
        if arguments:
            fields = self._event_fields("function_call_arguments.delta")
            events += named_event(
                FunctionCallArgumentsDelta(**fields, item_id=self._item_id, output_index=0, delta=arguments)
            )
        return events

    def closing(self, last: Delta) -> str:
        """See ``ResponseFormatter``."""
        response = self._finished(last)
        events = ""
        for item in response.output:
            if isinstance(item, FunctionCallItem):
                fields = self._event_fields("function_call_arguments.done")
                done = FunctionCallArgumentsDone(
                    **fields, item_id=self._item_id, output_index=0, name=item.name, arguments=item.arguments
                )
                events += named_event(done) + self._item_event("done", item)
        return events + self._state_event(response.status, response)

    def _output(self, status: Status) -> list[OutputItem]:
        if self._reader.name is None:
            return []
        return [self._call_item(status, self._reader.arguments)]

    def _call_item(self, status: Status, arguments: str) -> FunctionCallItem:
        return FunctionCallItem(
            id=self._item_id,
            type="function_call",
            call_id=self._call_id,
            name=self._reader.name or "",
            arguments=arguments,
            status=status,
        )
