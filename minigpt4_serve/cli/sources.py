"""The sources of the command line's answers: a model in this process, or a server. Only the former loads torch.

Both take messages in OpenAI's shape and give the client's events.
"""

import asyncio
import logging
import os
import signal
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import openai
from pydantic import SecretStr

from minigpt4_serve.cli.console import Step, end_interrupted_line
from minigpt4_serve.cli.options import MODEL_VARIABLE, describe_key_refusal
from minigpt4_serve.client import Completed, Event, SyncChatClient, TextDelta
from minigpt4_serve.client.failures import server_message
from minigpt4_serve.client.sync import iterate
from minigpt4_serve.entry_point import EXIT_BY_SIGNAL, end_at_once
from minigpt4_serve.errors import (
    InvalidImage,
    InvalidRequest,
    MiniGPT4Error,
    ModelNotFound,
    ServerUnreachable,
    StreamInterrupted,
)
from minigpt4_serve.images import ImageLimits, decode_pixels, image_url_part, validate_image
from minigpt4_serve.settings import ModelSettings, ServeSettings
from minigpt4_serve.signal_handlers import signal_handler

if TYPE_CHECKING:
    from minigpt4_serve.protocol import Delta

__all__ = ["AnswerSource", "LocalModel", "RemoteModel", "describe_failure", "open_source", "user_message"]

Message = dict[str, Any]

_client_log = logging.getLogger("minigpt4_serve.client")

_TIMEOUT_S = 600.0
_PATIENCE_S = 60.0


class AnswerSource(Protocol):
    """Answers chats."""

    def answer(self, messages: Sequence[Message], **options: Any) -> Generator[Event]:
        """Events of one answer; ``options`` are fields of a chat completion request.

        Closing the iterator, and Ctrl-C while it waits, abort the answer.

        Raises:
            MiniGPT4Error: in the first step or a later one.
        """

    def close(self) -> None:
        """Release the model or the connections."""


def open_source(server: str | None, api_key: str | None, model: Path) -> AnswerSource:
    """The server of this address, or else the model of this folder.

    Raises:
        InvalidRequest: ``server`` isn't an address.
        WeightsError: the folder isn't a model.
    """
    if server:
        return RemoteModel(server, api_key=api_key, model=os.environ.get(MODEL_VARIABLE))
    with Step("loading the model"), signal_handler(signal.SIGINT, _end_quietly):
        return LocalModel(ServeSettings(model=ModelSettings(path=model)))


def _end_quietly(number: int, _: object) -> None:
    """End this process at once: libraries turn an exception in their imports into others."""
    end_interrupted_line()
    os._exit(EXIT_BY_SIGNAL + number)


def user_message(text: str, pictures: Sequence[Path] = ()) -> Message:
    """A user's message with images from files, checked before anything expensive is started.

    Raises:
        InvalidRequest: no such file, or not readable.
        InvalidImage, PayloadTooLarge: not an image that the model accepts.
    """
    parts: list[Any] = []
    for path in pictures:
        try:
            data = path.read_bytes()
        except OSError as error:
            reasons = {FileNotFoundError: "there is no such file", IsADirectoryError: "it is a folder"}
            reason = reasons.get(type(error), "it can't be read")
            raise InvalidRequest(f"Can't open the picture {path}: {reason}.") from error
        try:
            decode_pixels(validate_image(data, ImageLimits()).data)
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

    def answer(self, messages: Sequence[Message], **options: Any) -> Generator[Event]:
        """See ``AnswerSource``."""
        return iterate(self._loop, self.events(messages, options))

    async def events(self, messages: Sequence[Message], options: dict[str, Any]) -> AsyncGenerator[Event]:
        """As ``answer``, in the event loop that runs."""
        from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate({"messages": list(messages), **options})
        chat = await self._service.prepare(request)
        begun = False
        last: Delta | None = None
        reason = "stop"
        stream: Any = self._service.stream(chat, request_id=f"local-{uuid.uuid4().hex}")
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                text = delta.text if begun else delta.text.lstrip()
                begun = begun or bool(text)
                reason = delta.finish_reason or reason
                last = delta
                if text:
                    yield TextDelta(text)
        usage = last.usage if last else None
        yield Completed(
            reason,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            dropped_messages=chat.dropped_messages,
        )

    def close(self) -> None:
        """Stop the engine."""
        self._engine.shutdown()
        self._loop.close()
        end_at_once()


class RemoteModel:
    """A model of a server, with errors in sentences for the person at the terminal, who may run the server too.

    Args:
        base_url: ``/v1`` is added if it has no path.
        api_key: None for a server without keys.
        model: None for the only one that the server lists.

    Raises:
        InvalidRequest: ``base_url`` isn't an address.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        key = SecretStr(api_key) if api_key else None
        self._has_key = key is not None
        self._client = SyncChatClient(base_url, key, model=model, timeout_s=_TIMEOUT_S, patience_s=_PATIENCE_S)
        self._log_level = _client_log.level
        _client_log.setLevel(logging.CRITICAL + 1)  # its errors are sentences for the person already

    def answer(self, messages: Sequence[Message], **options: Any) -> Generator[Event]:
        """See ``AnswerSource``."""
        try:
            yield from self._client.answer(messages, **options)
        except MiniGPT4Error as error:
            error.reword(describe_failure(error, self._client.base_url, self._has_key))
            raise

    def close(self) -> None:
        """Close the connections."""
        _client_log.setLevel(self._log_level)
        self._client.close()


def describe_failure(error: MiniGPT4Error, url: str, has_key: bool) -> str:
    """The server's own sentence if it sent one that helps here, else one that names its address."""
    if isinstance(error.__cause__, openai.AuthenticationError):
        return describe_key_refusal(url, has_key)
    if sentence := server_message(error.__cause__):
        return sentence
    if isinstance(error, ServerUnreachable) and not isinstance(error, StreamInterrupted):
        return f"Can't reach a server at {url}. Is it running? Start one: minigpt4 serve"
    if isinstance(error.__cause__, openai.APIStatusError):
        return f"The server at {url} answered with an error."
    if isinstance(error, ModelNotFound):
        return f"{url} offers several models: name the one to ask in {MODEL_VARIABLE}."
    return f"{url}: {error.message}"
