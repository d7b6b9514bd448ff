"""Vision for LangChain agents: a tool, a middleware that keeps images out of the context, and a chat model.

Works with any OpenAI-compatible vision server; imports neither torch nor Ray.
"""

from langchain_minigpt4.chat_models import ChatMiniGPT4
from langchain_minigpt4.middleware import ImageHandles, ImageHandlesState
from langchain_minigpt4.tools import MiniGPT4VisionTool

__all__ = ["ChatMiniGPT4", "ImageHandles", "ImageHandlesState", "MiniGPT4VisionTool"]
