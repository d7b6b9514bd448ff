"""Clients of any OpenAI-compatible vision server, for agents' integrations, bots and the command line.

Imports neither torch nor Ray. Images are checked before anything is sent; every failure is a ``MiniGPT4Error``.
"""

from minigpt4_serve.client.address import DEFAULT_BASE_URL, server_address, server_key
from minigpt4_serve.client.answers import FoundBox, Progress, TokenUsage, VisionAnswer
from minigpt4_serve.client.chat_client import ChatClient
from minigpt4_serve.client.events import Completed, Event, Queued, Retrying, TextDelta
from minigpt4_serve.client.image_paths import path_of_file_url
from minigpt4_serve.client.models import ModelCard, find_model, find_model_async
from minigpt4_serve.client.references import MAX_IMAGES, PictureSources, is_handle, read_each, split_references
from minigpt4_serve.client.sync import SyncChatClient, wait_for
from minigpt4_serve.client.vision import DEFAULT_QUESTION, VisionClient

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_QUESTION",
    "MAX_IMAGES",
    "ChatClient",
    "Completed",
    "Event",
    "FoundBox",
    "ModelCard",
    "PictureSources",
    "Progress",
    "Queued",
    "Retrying",
    "SyncChatClient",
    "TextDelta",
    "TokenUsage",
    "VisionAnswer",
    "VisionClient",
    "find_model",
    "find_model_async",
    "is_handle",
    "path_of_file_url",
    "read_each",
    "server_address",
    "server_key",
    "split_references",
    "wait_for",
]
