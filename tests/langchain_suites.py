"""The chat model's capabilities for LangChain's standard test suites."""

import base64
from typing import Any, cast

import httpx
import pytest
from drawing import draw, encode
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_minigpt4 import ChatMiniGPT4


class ChatModelFlags:
    """Every capability flag of the suites."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMiniGPT4

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def has_tool_calling(self) -> bool:
        return False  # bind_tools exists only to raise an error with advice

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False  # supported, but the embedded model's strings exceed the limit: see test_chat_models.py

    @property
    def supports_json_mode(self) -> bool:
        return False  # the mode allows any object, and the embedded model writes the shortest

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return False  # the server doesn't fetch URLs

    @property
    def supports_pdf_inputs(self) -> bool:
        return False

    @property
    def supports_audio_inputs(self) -> bool:
        return False

    @property
    def supports_video_inputs(self) -> bool:
        return False

    @property
    def returns_usage_metadata(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return False

    @property
    def supports_image_tool_message(self) -> bool:
        return False

    @property
    def supports_pdf_tool_message(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """Send the same prompt twice: the second finds it in the cache."""
        model = self.chat_model_class(**self.chat_model_params)  # type: ignore[call-arg]
        data = base64.b64encode(encode(draw("green", (320, 240)))).decode()
        picture = {"type": "image", "base64": data, "mime_type": "image/png"}
        message = HumanMessage([picture, {"type": "text", "text": "What color is the circle?"}])
        model.invoke([message])
        if not stream:
            return model.invoke([message])
        first, *others = model.stream([message])
        return cast(AIMessage, sum(others, first))

    @property
    def supports_model_override(self) -> bool:
        return True


def drawn_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the suite's downloads of images by a drawn one: tests need no network."""

    def get(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(200, content=encode(draw("red")), request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", get)
