"""Where the command line's answers come from: a model in this process, or a server. Loads torch only for the former.

Both take the same OpenAI-shaped messages and give the same pieces, so that commands don't care which one they talk to.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minigpt4_serve.errors import (
    EngineFailed,
    InvalidImage,
    InvalidRequest,
    MiniGPT4Error,
    ModelNotFound,
    ServerUnreachable,
)
from minigpt4_serve.images import ImageLimits, decode_image, image_url_part, validate_image
from minigpt4_serve.settings import ServeSettings

if TYPE_CHECKING:
    from minigpt4_serve.protocol import Delta

__all__ = ["Answer", "AnswerSource", "LocalModel", "RemoteModel", "user_message"]

Message = dict[str, Any]


@dataclass
class Answer:
    """One answer while it grows; iterating yields its text piece by piece.

    Attributes:
        text: all of it so far.
        ttft: seconds until the first piece.
        seconds: seconds in all, once finished.
        prompt_tokens, cached_tokens, completion_tokens: usage, once finished.
        dropped_messages: messages whose text was forgotten because the chat is too long.
    """

    text: str = ""
    ttft: float = 0.0
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    dropped_messages: int = 0
    pieces: Iterator[str] = field(default=iter(()), repr=False)

    def __iter__(self) -> Iterator[str]:
        started = time.perf_counter()
        for piece in self.pieces:
            self.ttft = self.ttft or time.perf_counter() - started
            self.text += piece
            yield piece
        self.seconds = time.perf_counter() - started


class AnswerSource(Protocol):
    """Answers chats. Leaving the iteration of an answer early, by Ctrl-C too, stops it at the source."""

    def answer(self, messages: Sequence[Message], **options: Any) -> Answer:
        """Begin an answer; ``options`` are fields of a chat completion request."""

    def close(self) -> None:
        """Let go of model or connection."""


def user_message(text: str, pictures: Sequence[Path] = ()) -> Message:
    """A user's message with pictures from files, checked before anything expensive is started.

    Raises:
        InvalidRequest: no such file, or not readable.
        InvalidImage, PayloadTooLarge: not a picture that the model can be shown.
    """
    parts: list[Any] = []
    for path in pictures:
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = {FileNotFoundError: "there is no such file", IsADirectoryError: "it is a folder"}
            why = reason.get(type(error), "it can't be read")
            raise InvalidRequest(f"Can't open the picture {path}: {why}.") from error
        try:
            decode_image(validate_image(data, ImageLimits()).data)
        except InvalidImage as error:
            raise InvalidImage(f"{path}: {error.message}") from error
        parts.append(image_url_part(data))
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


class LocalModel:
    """A model in this process, with the same engine that the server uses.

    Raises:
        WeightsError: the folder isn't a model.
    """

    def __init__(self, settings: ServeSettings) -> None:
        from minigpt4_serve.server.local_engine import load_engine, loading

        with loading():
            self._engine, self._service = load_engine(settings)
        self._loop = asyncio.new_event_loop()

    def answer(self, messages: Sequence[Message], **options: Any) -> Answer:
        """See ``AnswerSource``."""
        from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate({"messages": list(messages), **options})
        chat = self._loop.run_until_complete(self._service.prepare(request))
        answer = Answer(dropped_messages=chat.dropped_messages)
        request_id = f"local-{uuid.uuid4().hex}"
        answer.pieces = self._pieces(self._service.stream(chat, request_id=request_id), request_id, answer)
        return answer

    def _pieces(self, deltas: "AsyncIterator[Delta]", request_id: str, answer: Answer) -> Iterator[str]:
        async def following() -> "Delta | None":
            return await anext(deltas, None)

        waiting: asyncio.Task[Delta | None] | None = None
        begun = False
        try:
            while True:
                waiting = self._loop.create_task(following())
                delta = self._loop.run_until_complete(waiting)
                if delta is None:
                    return
                text = delta.text if begun else delta.text.lstrip()
                begun = begun or bool(text)
                if delta.usage is not None:
                    answer.prompt_tokens = delta.usage.prompt_tokens
                    answer.cached_tokens = delta.usage.cached_tokens
                    answer.completion_tokens = delta.usage.completion_tokens
                if text:
                    yield text
        finally:
            # Ctrl-C interrupts the loop, not the task: stop the answer and let the task see its end.
            self._engine.abort(request_id)
            if waiting is not None and not waiting.done():
                self._loop.run_until_complete(waiting)

    def close(self) -> None:
        """Stop the engine."""
        self._engine.shutdown()
        self._loop.close()


class RemoteModel:
    """A model of a server that speaks the OpenAI API.

    Args:
        base_url: ``/v1`` is added if it has no path.
        api_key: None if the server wants none.
        model: None for the only one that the server has.

    Raises:
        InvalidRequest: ``base_url`` isn't an address.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        import openai

        from minigpt4_serve.client import server_address

        self._url = server_address(base_url)
        self._client = openai.OpenAI(base_url=self._url, api_key=api_key or "none", max_retries=2)
        self._model = model

    def answer(self, messages: Sequence[Message], **options: Any) -> Answer:
        """See ``AnswerSource``."""
        known = {"max_tokens", "temperature", "seed", "top_p", "stop"}
        extra = {name: value for name, value in options.items() if name not in known}
        plain = {name: value for name, value in options.items() if name in known}
        answer = Answer()
        answer.pieces = self._pieces(list(messages), plain, extra, answer)
        return answer

    def _pieces(self, messages: Any, plain: dict[str, Any], extra: dict[str, Any], answer: Answer) -> Iterator[str]:
        import openai

        from minigpt4_serve.client import find_model
        from minigpt4_serve.client.answers import Gathering

        gathering = Gathering()
        try:
            self._model = self._model or find_model(self._client)
            with self._client.chat.completions.create(
                model=self._model,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra or None,
                **plain,
            ) as stream:
                for chunk in stream:
                    piece = chunk.to_dict(warnings=False)
                    if words := gathering.take(piece):
                        yield words
                    answer.dropped_messages = piece.get("dropped_messages") or answer.dropped_messages
            if usage := gathering.usage:
                answer.prompt_tokens = usage.prompt_tokens
                answer.cached_tokens = usage.cached_tokens
                answer.completion_tokens = usage.completion_tokens
        except ModelNotFound:
            raise ModelNotFound(f"{self._url} offers several models: name the one to ask in MINIGPT4_MODEL.") from None
        except openai.APIConnectionError as error:
            raise ServerUnreachable(
                f"Can't reach a server at {self._url}. Is it running? Start one: minigpt4 serve"
            ) from error
        except openai.APIError as error:
            raise _as_ours(error, self._url) from error
        except (ValueError, TypeError, AttributeError) as error:  # JSON of another shape, or none
            raise _not_understood(self._url) from error
        if not gathering.text and not gathering.finish_reasons:
            raise _not_understood(self._url)  # a web page, for example: no line of it is a piece of an answer

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _as_ours(error: Any, url: str) -> MiniGPT4Error:
    """The server's own sentence, if it speaks OpenAI's shape."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message")
    wrapped = MiniGPT4Error(message if isinstance(message, str) else f"The server at {url} answered with an error.")
    wrapped.code = body.get("code") or wrapped.code
    return wrapped


def _not_understood(url: str) -> EngineFailed:
    return EngineFailed(
        f"What answers at {url} can't be understood; check that it is the address of an OpenAI-compatible server."
    )
