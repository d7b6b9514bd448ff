"""A LangChain chat model for the server, on the base class of OpenAI-compatible models."""

import copy
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NoReturn

import openai
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from minigpt4_serve.client import find_model, find_model_async, server_address, server_key
from minigpt4_serve.client.connection import make_http_client

__all__ = ["ChatMiniGPT4"]

_BYTES_PER_TOKEN = 3
"""Of UTF-8. Vicuna and Llama 2 take about four for English prose and fewer for other languages."""
_TOKENS_PER_MESSAGE = 5  # a role's name and a separator
_TOKENS_PER_IMAGE = 256
"""What MiniGPT-v2 takes; others take fewer."""
_CONNECTIONS = frozenset({"client", "async_client", "root_client", "root_async_client"})
_HTTP_CLIENTS = frozenset({"http_client", "http_async_client"})


class ChatMiniGPT4(BaseChatOpenAI):
    """MiniGPT-4 as a chat model with vision.

    Pictures are standard content blocks::

        model = ChatMiniGPT4()
        question = {"type": "text", "text": "What is in this picture?"}
        picture = {"type": "image", "base64": data, "mime_type": "image/png"}
        model.invoke([HumanMessage([picture, question])]).text

    The model can't call tools. For an agent with vision, give ``MiniGPT4VisionTool`` to a model that can.

    Raises:
        InvalidRequest: ``base_url`` isn't an address, or the key or a variable of the environment can't be used.
    """

    model_name: str = Field(default="", alias="model")
    """The only one that the server lists if empty, asked for before each answer."""
    openai_api_base: str | None = Field(default_factory=server_address, alias="base_url")
    openai_api_key: SecretStr | None = Field(default_factory=server_key, alias="api_key")
    stream_usage: bool | None = True

    @field_validator("openai_api_base")
    @classmethod
    def _with_path(cls, given: str | None) -> str:
        return server_address(given)

    @field_validator("openai_api_key")
    @classmethod
    def _without_blanks(cls, given: SecretStr | None) -> SecretStr:
        return server_key(given)

    @model_validator(mode="before")
    @classmethod
    def _with_http_clients(cls, values: dict[str, Any]) -> dict[str, Any]:
        """HTTP clients that connect to this machine directly; the base class's always use the proxy variables."""
        if values.get("openai_proxy"):
            return values
        given = values.get("base_url") or values.get("openai_api_base")
        url = server_address(given if isinstance(given, str) else None)
        clients = {"http_client": openai.DefaultHttpxClient, "http_async_client": openai.DefaultAsyncHttpxClient}
        made = {name: make_http_client(kind, url) for name, kind in clients.items() if values.get(name) is None}
        return {**values, **made}

    @property
    def _llm_type(self) -> str:
        return "minigpt4-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return {**super()._get_ls_params(stop=stop, **kwargs), "ls_provider": "minigpt4"}

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        # The base class keeps connections beyond their event loop, where they can be neither used nor closed.
        payload["extra_headers"] = {"Connection": "close", **(payload.get("extra_headers") or {})}
        return payload

    def _generate(
        self, messages: Any, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return super()._generate(messages, stop, run_manager, **self._with_model(kwargs))

    def _stream(
        self, messages: Any, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from super()._stream(messages, stop, run_manager, **self._with_model(kwargs))

    async def _agenerate(
        self, messages: Any, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await super()._agenerate(messages, stop, run_manager, **await self._with_model_async(kwargs))

    async def _astream(
        self, messages: Any, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in super()._astream(messages, stop, run_manager, **await self._with_model_async(kwargs)):
            yield chunk

    def _with_model(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's options, with the server's only model if none is named."""
        named = self.model_name or kwargs.get("model")
        return kwargs if named else {**kwargs, "model": find_model(self.root_client)}

    async def _with_model_async(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        named = self.model_name or kwargs.get("model")
        return kwargs if named else {**kwargs, "model": await find_model_async(self.root_async_client)}

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by ``custom_get_token_ids``.

        Raises:
            NotImplementedError: it isn't given. The server's tokenizer isn't available to clients.
        """
        if self.custom_get_token_ids is None:
            raise NotImplementedError("MiniGPT-4's tokenizer is at the server; give 'custom_get_token_ids'.")
        return self.custom_get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """The number of tokens of a text: estimated from its length, unless ``custom_get_token_ids`` is given."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return math.ceil(len(text.encode(errors="replace")) / _BYTES_PER_TOKEN)

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Any = None, **_: Any) -> int:
        """The number of tokens of a chat: estimated as by ``get_num_tokens``, each image as 256. Nothing is fetched."""
        count = 0
        for message in messages:
            count += _TOKENS_PER_MESSAGE
            for block in message.content_blocks:
                count += self.get_num_tokens(block["text"]) if block["type"] == "text" else 0
                count += _TOKENS_PER_IMAGE if block["type"] == "image" else 0
        return count

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "ChatMiniGPT4":
        """A copy that shares the HTTP clients."""
        shared = {id(client): client for client in (self.http_client, self.http_async_client)}
        return _rebuild(type(self), copy.deepcopy(self._settings(), {**(memo or {}), **shared}))

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the HTTP clients, which can't be pickled: the new model makes its own."""
        settings = self._settings()
        return _rebuild, (type(self), {name: settings[name] for name in settings.keys() - _HTTP_CLIENTS})

    def _settings(self) -> dict[str, Any]:
        """The fields that were given, without connections."""
        return {name: getattr(self, name) for name in self.model_fields_set - _CONNECTIONS}

    def bind_tools(self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **_: Any) -> NoReturn:
        """Not possible.

        Raises:
            NotImplementedError: always, with advice.
        """
        raise NotImplementedError("MiniGPT-4 can't call tools. Give MiniGPT4VisionTool to a model that can.")

    def with_structured_output(
        self, schema: dict[str, Any] | type | None = None, *, method: str = "json_schema", **options: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers that follow a schema: the server masks tokens that would violate it.

        The shape is guaranteed, the content isn't: MiniGPT-4 wasn't trained to write JSON, so ask for few and short
        fields, and give enumerations.

        Args:
            method: ``json_schema``, or ``json_mode`` for any JSON object.
            options: ``include_raw``, ``strict`` (true if not given) and the other options of the base class.

        Raises:
            NotImplementedError: ``method`` is ``function_calling``.
        """
        if method == "function_calling":
            raise NotImplementedError("MiniGPT-4 can't call functions: leave method at its default, 'json_schema'.")
        if method == "json_schema":
            options.setdefault("strict", True)  # no additional fields
        return super().with_structured_output(schema, method=method, **options)  # type: ignore[arg-type]


def _rebuild(model: type[ChatMiniGPT4], settings: dict[str, Any]) -> ChatMiniGPT4:
    return model(**settings)
