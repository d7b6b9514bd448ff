"""A chat model for the server, on LangChain's own OpenAI-compatible base. Knows defaults and what can't be done."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from langchain_core.language_models import LanguageModelInput
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env, secret_from_env
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import Field, SecretStr

from minigpt4_serve.client import DEFAULT_BASE_URL

__all__ = ["ChatMiniGPT4"]


class ChatMiniGPT4(BaseChatOpenAI):
    """MiniGPT-4 as a chat model that sees.

    Pictures are standard content blocks::

        model = ChatMiniGPT4()
        question = {"type": "text", "text": "What is in this picture?"}
        picture = {"type": "image", "base64": data, "mime_type": "image/png"}
        model.invoke([HumanMessage([picture, question])]).text

    It calls no tools and gives no structured output, because the model can't: to give an agent eyes, give a model that
    calls tools the ``MiniGPT4VisionTool``.
    """

    model_name: str = Field(default="", alias="model")
    """The server's own model if empty."""
    openai_api_base: str | None = Field(
        default_factory=from_env("MINIGPT4_BASE_URL", default=DEFAULT_BASE_URL), alias="base_url"
    )
    openai_api_key: SecretStr | None = Field(
        default_factory=secret_from_env("MINIGPT4_API_KEY", default="none"), alias="api_key"
    )
    stream_usage: bool | None = True

    @property
    def _llm_type(self) -> str:
        return "minigpt4-chat"

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        # Null is "yours"; a server with several models must be told a name.
        payload["model"] = payload.get("model") or None
        # The base keeps connections beyond their event loop, where nobody can use or close them: let none be kept.
        payload["extra_headers"] = {"Connection": "close", **(payload.get("extra_headers") or {})}
        return payload

    def bind_tools(self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **_: Any) -> NoReturn:
        """Not possible.

        Raises:
            NotImplementedError: always, with advice.
        """
        raise NotImplementedError(
            "MiniGPT-4 can't call tools. Give MiniGPT4VisionTool to a model that can, and it sees through it."
        )

    def with_structured_output(self, schema: Any = None, **_: Any) -> NoReturn:
        """Not possible.

        Raises:
            NotImplementedError: always, with advice.
        """
        raise NotImplementedError("MiniGPT-4 can't be held to a schema. Ask for plain text and read it yourself.")
