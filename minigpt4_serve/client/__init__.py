"""What agents' integrations share: asking any OpenAI-compatible vision server about pictures from anywhere.

Knows HTTP, pictures and the error tree; no LangChain, no MCP, no torch. Everything that could be wrong with a picture
is found here, before the server is bothered, and every failure is a ``MiniGPT4Error`` whose sentence an agent can act
on.
"""

from minigpt4_serve.client.references import MAX_IMAGES, PictureSources, is_handle, read_each
from minigpt4_serve.client.vision import (
    DEFAULT_BASE_URL,
    DEFAULT_QUESTION,
    FoundBox,
    Progress,
    TokenUsage,
    VisionAnswer,
    VisionClient,
    wait_for,
)
from minigpt4_serve.fetch import PictureFetcher

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_QUESTION",
    "MAX_IMAGES",
    "FoundBox",
    "PictureFetcher",
    "PictureSources",
    "Progress",
    "TokenUsage",
    "VisionAnswer",
    "VisionClient",
    "is_handle",
    "read_each",
    "wait_for",
]
