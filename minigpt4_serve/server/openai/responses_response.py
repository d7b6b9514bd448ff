"""Answers in the words of OpenAI's Responses API, whole or as named events. Knows deltas and wire shapes, no HTTP."""

import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from minigpt4_serve.errors import ContextLengthExceeded, EngineFailed, MiniGPT4Error
from minigpt4_serve.protocol import Delta
from minigpt4_serve.server.http.chat_service import PreparedChat
from minigpt4_serve.server.http.error_handlers import INTERNAL
from minigpt4_serve.server.openai.chat_response import event, extras, logprobs
from minigpt4_serve.server.openai.responses_request import ResponsesRequest

__all__ = ["ResponseAnswer"]

_log = logging.getLogger(__name__)

Item = dict[str, Any]


class ResponseAnswer:
    """One answer: a response with one message of one part of text.

    Raises:
        ContextLengthExceeded: messages had to be dropped, and the request forbids it.
    """

    def __init__(self, model: str, wanted: ResponsesRequest, chat: PreparedChat, engine_id: str) -> None:
        if wanted.truncation == "disabled" and chat.dropped_messages:
            raise ContextLengthExceeded(
                "The input is too long for the model, and truncation is disabled.", param="input"
            )
        self._dropped = chat.dropped_messages
        self._item_id = f"msg_{engine_id}"
        self._sent = 0
        self._text = ""
        self._logprobs: list[Item] = []
        self._head = {
            "id": f"resp_{engine_id}",
            "object": "response",
            "created_at": int(time.time()),
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "metadata": wanted.metadata,
            "model": model,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": chat.sampling.temperature,
            "text": {"format": wanted.text.format.model_dump(by_alias=True)},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": wanted.top_logprobs or 0,
            "top_p": chat.sampling.top_p,
            "truncation": wanted.truncation,
            "usage": None,
        }

    async def whole(self, deltas: AsyncIterator[Delta]) -> Item:
        """All of it, as ``response``."""
        last: Delta | None = None
        async for delta in deltas:
            self._take(delta)
            last = delta
        if last is None or last.finish_reason == "abort":
            raise EngineFailed("The answer was cut short; ask again.")
        self._text = self._text.rstrip()
        return self._finished(last)

    async def events(self, first: Delta, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
        """Server-sent events; leaving this generator, however, closes the engine's."""
        try:
            for line in self._opening():
                yield line
            delta: Delta | None = first
            last = first
            while delta is not None:
                last = delta
                if delta.queue_position is not None:
                    yield f": waiting, {delta.queue_position} ahead\n\n"
                before, told = len(self._text), len(self._logprobs)
                self._take(delta)
                if len(self._text) > before:
                    piece = {"delta": self._text[before:], "logprobs": self._logprobs[told:]}
                    yield self._event("response.output_text.delta", **self._part_place, **piece)
                delta = await anext(deltas, None)
            if last.finish_reason == "abort":
                raise EngineFailed("The answer was cut short; ask again.")
            for line in self._closing(last):
                yield line
        except MiniGPT4Error as error:
            yield self._failed(error)
        except Exception:
            _log.exception("stream %s failed", self._head["id"])
            yield self._failed(MiniGPT4Error(INTERNAL))
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    def _take(self, delta: Delta) -> None:
        # SentencePiece answers begin with a blank that the prompt's last blank already stands for.
        self._text += delta.text if self._text else delta.text.lstrip()
        self._logprobs += logprobs(delta)

    @property
    def _part_place(self) -> Item:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _part(self) -> Item:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}

    def _item(self, status: str, content: list[Item]) -> Item:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _finished(self, last: Delta) -> Item:
        """The response at its end; one that was cut at its length is incomplete."""
        cut = last.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        usage = last.usage
        assert usage is not None, "the engine's last delta carries the usage"
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(status, [self._part()])],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
            **extras(last, self._dropped),
        }

    def _opening(self) -> Iterator[str]:
        begun = {**self._head, "status": "in_progress", "output": []}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **self._part_place, part=self._part())

    def _closing(self, last: Delta) -> Iterator[str]:
        whole = self._finished(last)
        said = {"text": self._text, "logprobs": self._logprobs}
        yield self._event("response.output_text.done", **self._part_place, **said)
        yield self._event("response.content_part.done", **self._part_place, part=self._part())
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def _failed(self, error: MiniGPT4Error) -> str:
        said = {"code": "server_error", "message": error.message}
        response = {
            **self._head,
            "status": "failed",
            "error": said,
            "output": [self._item("incomplete", [self._part()])],
        }
        return self._event("response.failed", response=response)

    def _event(self, kind: str, **fields: Any) -> str:
        line = event({"type": kind, "sequence_number": self._sent, **fields}, name=kind)
        self._sent += 1
        return line
