"""Deltas → chat completions whose message is a call of a tool."""

from minigpt4_serve.protocol import Delta
from minigpt4_serve.server.openai.chat_formatter import ChatFormatter, make_choice
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest
from minigpt4_serve.server.openai.chat_response import (
    AnswerFinishReason,
    AssistantMessage,
    ChoiceLogprobs,
    ChunkDelta,
    ChunkToolCall,
    FunctionCall,
    FunctionDelta,
    ToolCall,
)
from minigpt4_serve.server.openai.tool_calls import CallReader, ForcedCall
from minigpt4_serve.server.openai.wire import server_sent_event, token_logprobs

__all__ = ["ChatToolFormatter"]


class ChatToolFormatter(ChatFormatter):
    """One answer to a request that forces a call; see ``ResponseFormatter``.

    A call that is cut at its length has the arguments so far, and the finish reason ``length``.
    """

    def __init__(
        self, model: str, request: ChatCompletionRequest, answer_id: str, dropped_messages: int, call: ForcedCall
    ) -> None:
        super().__init__(model, request, answer_id, dropped_messages)
        self._call_ids = [f"call_{answer_id}_{index}" for index in range(request.n)]
        self._call = call
        self._readers = [CallReader(call) for _ in range(request.n)]
        self._announced = [False] * request.n

    def message(self, index: int, text: str) -> AssistantMessage:
        """See ``ChatFormatter``."""
        reader = CallReader(self._call)
        reader.feed(text, finish_reason=self._finish_reasons[index])
        if reader.name is None:
            return AssistantMessage(role="assistant", content="", refusal=None)
        call = ToolCall(
            id=self._call_ids[index],
            type="function",
            function=FunctionCall(name=reader.name, arguments=reader.arguments.rstrip()),
        )
        return AssistantMessage(role="assistant", content=None, refusal=None, tool_calls=[call])

    def finish_reason(self, reason: AnswerFinishReason | None) -> AnswerFinishReason | None:
        """See ``ChatFormatter``."""
        return "tool_calls" if reason == "stop" else reason

    def delta_event(self, delta: Delta) -> str:
        """See ``ResponseFormatter``."""
        index = delta.index
        reader = self._readers[index]
        arguments = reader.feed(delta.text, finish_reason=delta.finish_reason)
        choices = []
        if reader.name is not None and not self._announced[index]:
            self._announced[index] = True
            function = FunctionDelta(name=reader.name, arguments="")
            begun = ChunkToolCall(index=0, id=self._call_ids[index], type="function", function=function)
            choices.append(make_choice(index, ChunkDelta(role="assistant", content=None, tool_calls=[begun])))
        if arguments:
            added = ChunkToolCall(index=0, function=FunctionDelta(arguments=arguments))
            choices.append(make_choice(index, ChunkDelta(tool_calls=[added])))
        if delta.finish_reason is not None:
            choices.append(make_choice(index, ChunkDelta(), self.finish_reason(delta.finish_reason)))
        if not choices:
            return ""
        if delta.logprobs:
            choices[-1].logprobs = ChoiceLogprobs(content=token_logprobs(delta), refusal=None)
        return "".join(map(server_sent_event, self.chunks(choices, delta)))
