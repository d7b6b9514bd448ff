"""What agents' integrations, bots and the page share: asking any OpenAI-compatible vision server about pictures.

Knows HTTP, pictures and the error tree; no LangChain, no MCP, no torch. Everything that could be wrong with a picture
is found here, before the server is bothered; every failure is a ``MiniGPT4Error`` whose sentence an agent can act on.
"""

from minigpt4_serve.client.address import (
    DEFAULT_BASE_URL,
    find_model,
    find_model_async,
    server_address,
    server_key,
)
from minigpt4_serve.client.answers import FoundBox, Progress, TokenUsage, VisionAnswer
from minigpt4_serve.client.references import MAX_IMAGES, PictureSources, is_handle, read_each
from minigpt4_serve.client.vision import DEFAULT_QUESTION, VisionClient, wait_for

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_QUESTION",
    "MAX_IMAGES",
    "FoundBox",
    "PictureSources",
    "Progress",
    "TokenUsage",
    "VisionAnswer",
    "VisionClient",
    "find_model",
    "find_model_async",
    "is_handle",
    "read_each",
    "server_address",
    "server_key",
    "wait_for",
]
