"""Chat completions in OpenAI's words, whole or in chunks. Knows deltas and wire shapes, no HTTP and no Ray."""

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error
from minigpt4_serve.protocol import Delta
from minigpt4_serve.server.http.chat_service import PreparedChat
from minigpt4_serve.server.http.error_handlers import INTERNAL
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest

__all__ = ["ChatCompletion", "event", "extras", "logprobs"]

_log = logging.getLogger(__name__)


class ChatCompletion:
    """One answer in OpenAI's words, whole or in chunks."""

    def __init__(self, model: str, wanted: ChatCompletionRequest, chat: PreparedChat, engine_id: str) -> None:
        self._wanted = wanted
        self._dropped = chat.dropped_messages
        self._head = {
            "id": f"chatcmpl-{engine_id}",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, deltas: AsyncIterator[Delta]) -> dict[str, Any]:
        """All choices, as ``chat.completion``."""
        texts = [""] * self._wanted.n
        told: list[list[dict[str, Any]]] = [[] for _ in texts]
        reasons: list[str | None] = [None] * len(texts)
        last: Delta | None = None
        async for delta in deltas:
            texts[delta.index] += delta.text
            told[delta.index] += logprobs(delta)
            reasons[delta.index] = delta.finish_reason or reasons[delta.index]
            last = delta
        if last is None or "abort" in reasons:
            raise EngineFailed("The answer was cut short; ask again.")
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text.strip(), "refusal": None},
                "logprobs": {"content": told[i], "refusal": None} if self._wanted.logprobs else None,
                "finish_reason": reasons[i],
            }
            for i, text in enumerate(texts)
        ]
        answer = {**self._head, "object": "chat.completion", "choices": choices}
        return {**answer, "usage": self._usage(last), **extras(last, self._dropped)}

    async def events(self, first: Delta, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
        """Server-sent events; leaving this generator, however, closes the engine's."""
        begun: set[int] = set()
        last = first
        try:
            delta: Delta | None = first
            while delta is not None:
                last = delta
                if delta.queue_position is not None:
                    # A comment: clients skip it, proxies see that the connection lives.
                    yield f": waiting, {delta.queue_position} ahead\n\n"
                    delta = await anext(deltas, None)
                    continue
                # One write for all of it: each costs everybody on the way to the client.
                if chunks := self._chunks(delta, begun):
                    yield "".join(map(event, chunks))
                delta = await anext(deltas, None)
            if self._reports_usage:
                chunk = {**self._head, "object": "chat.completion.chunk", "choices": []}
                yield event({**chunk, "usage": self._usage(last), **extras(last, self._dropped)})
        except MiniGPT4Error as error:
            yield event(error.body())
        except Exception:
            _log.exception("stream %s failed", self._head["id"])
            yield event(MiniGPT4Error(INTERNAL).body())
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]
        yield "data: [DONE]\n\n"

    def _chunks(self, delta: Delta, begun: set[int]) -> list[dict[str, Any]]:
        parts: list[tuple[dict[str, Any], str | None]] = []
        text = delta.text
        if delta.index not in begun:
            # SentencePiece answers begin with a blank that the prompt's last blank already stands for.
            text = text.lstrip()
            if not text and delta.finish_reason is None:
                return []
            begun.add(delta.index)
            parts.append(({"role": "assistant", "content": ""}, None))
        if text:
            parts.append(({"content": text}, None))
        if delta.finish_reason:
            parts.append(({}, delta.finish_reason))
        content = logprobs(delta)
        # Tokens are reported once: with their text, or with the end if they have none.
        carrier = next((i for i, (piece, _) in enumerate(parts) if piece.get("content")), len(parts) - 1)
        chunks: list[dict[str, Any]] = [
            {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [
                    {
                        "index": delta.index,
                        "delta": piece,
                        "logprobs": {"content": content, "refusal": None} if content and i == carrier else None,
                        "finish_reason": reason,
                    }
                ],
            }
            for i, (piece, reason) in enumerate(parts)
        ]
        if delta.usage is not None and not self._reports_usage:
            # A chunk without choices is only for those who asked for it: others index the first choice blindly.
            chunks[-1].update(extras(delta, self._dropped))
        return chunks

    @property
    def _reports_usage(self) -> bool:
        options = self._wanted.stream_options
        return options is not None and options.include_usage

    @staticmethod
    def _usage(last: Delta) -> dict[str, Any]:
        usage = last.usage
        assert usage is not None, "the engine's last delta carries the usage"
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }


def extras(last: Delta, dropped_messages: int) -> dict[str, Any]:
    """What OpenAI's answers don't have: where the time went, and what was forgotten to fit the context."""
    timings = {"timings": last.timings.as_dict()} if last.timings else {}
    return {**timings, **({"dropped_messages": dropped_messages} if dropped_messages else {})}


def logprobs(delta: Delta) -> list[dict[str, Any]]:
    """The delta's tokens with their probabilities, in OpenAI's words."""
    return [
        {
            "token": entry.token,
            "logprob": entry.logprob,
            "bytes": list(entry.token.encode()),
            "top_logprobs": [
                {"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in entry.top
            ],
        }
        for entry in delta.logprobs or ()
    ]


def event(data: dict[str, Any], *, name: str | None = None) -> str:
    """A server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"
