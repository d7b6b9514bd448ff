"""Replaces the images in LangChain messages with handles.

An image becomes one line of text with its handle (``image_1``); its bytes go into the conversation's state.
``_find_image`` lists the supported formats of content blocks.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from langchain_core.messages import BaseMessage

from minigpt4_serve.images import decode_base64, is_data_url
from minigpt4_serve.images.pasted import find_pasted_images

__all__ = ["StoredImage", "all_images", "extract_images"]

_HANDLE_NUMBER = re.compile(r"(?<!\d)\d+$")
_DATA_URL = re.compile(r"data:[^,]*;\s*base64,", re.IGNORECASE)
_CANONICAL = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_OTHER_FILES = frozenset({"audio", "document", "file", "input_audio", "input_file", "media", "video"})
_MAX_DEPTH = 20  # of blocks within blocks

_M = TypeVar("_M", bound=BaseMessage)


class StoredImage(TypedDict, total=False):
    """One image of a conversation, in a form that any checkpointer can store. Exactly one key is set.

    Attributes:
        base64: the encoded file.
        url: its address; the image hasn't been fetched.
        refused: why it can't be used.
    """

    base64: str
    url: str
    refused: str


def extract_images(
    messages: Sequence[BaseMessage], known: Mapping[str, StoredImage], *, max_bytes: int
) -> tuple[list[BaseMessage], dict[str, StoredImage]]:
    """Return the messages with images, with handles in their place, and the new images by their handles.

    A known image keeps its handle; an image that can't be used gets a new one each time.
    """
    handles = _Handles(known, max_bytes)
    changed = [after for before in messages if (after := _rewrite(before, handles)) is not before]
    return changed, handles.new


def all_images(
    messages: Sequence[BaseMessage], known: Mapping[str, StoredImage], *, max_bytes: int
) -> dict[str, StoredImage]:
    """All images of a conversation by their handles, both known ones and those still in messages."""
    return {**known, **extract_images(messages, known, max_bytes=max_bytes)[1]}


class _Handles:
    """Assigns a handle to each image."""

    def __init__(self, known: Mapping[str, StoredImage], max_bytes: int) -> None:
        self._handles = {_identity(image): handle for handle, image in known.items()}
        # The highest number, not the count: a developer may have removed images.
        self._last_number = max(
            (int(found[0]) for handle in known if (found := _HANDLE_NUMBER.search(handle))), default=0
        )
        self._max_base64 = (max_bytes + 2) // 3 * 4
        self._limit = f"{max_bytes / 2**20:.0f} MiB"
        self.new: dict[str, StoredImage] = {}

    def assign(self, image: StoredImage) -> str:
        """Return the line of text that replaces the image."""
        if len(image.get("base64", "")) > self._max_base64:
            image = {"refused": f"This picture has more than {self._limit}; send a smaller one."}
        handle = None if "refused" in image else self._handles.get(_identity(image))
        if handle is None:
            self._last_number += 1
            handle = f"image_{self._last_number}"
            self.new[handle] = image
            self._handles[_identity(image)] = handle
        return f"[{handle}: {image.get('refused', 'a picture; to look at it, pass this name to a tool')}]"


def _identity(image: StoredImage) -> tuple[tuple[str, Any], ...]:
    return tuple(image.items())


def _rewrite(message: _M, handles: _Handles) -> _M:
    content = _replace_images(message.content, handles)
    return message if content is message.content else message.model_copy(update={"content": content})


def _replace_images(content: Any, handles: _Handles, depth: int = 0) -> Any:
    """The content with text in place of its images; the same object if there are none."""
    if isinstance(content, str):
        return _replace_in_text(content, handles)
    if depth > _MAX_DEPTH:
        return content
    if isinstance(content, list):
        parts = [_replace_images(part, handles, depth + 1) for part in content]
        return content if all(after is before for after, before in zip(parts, content, strict=True)) else parts
    if not isinstance(content, dict):
        return content
    if (image := _find_image(content)) is not None:
        return {"type": "text", "text": handles.assign(image)}
    if content.get("type") in _OTHER_FILES:
        return content
    # Text, or a block that wraps others, such as a tool's result or its arguments.
    inner = {key: _replace_images(value, handles, depth + 1) for key, value in content.items()}
    return content if all(inner[key] is value for key, value in content.items()) else inner


def _replace_in_text(text: str, handles: _Handles) -> str:
    parts: list[str] = []
    end = 0
    for found in find_pasted_images(text):
        parts += [text[end : found.start], handles.assign({"base64": _canonical(found.base64)})]
        end = found.end
    return "".join([*parts, text[end:]]) if parts else text


def _find_image(block: Mapping[str, Any]) -> StoredImage | None:
    """The image of a content block; None if the block isn't an image.

    Formats: LangChain's standard blocks (v0 and v1), OpenAI's (Chat Completions and Responses), Anthropic's,
    Google's, Amazon's, Hugging Face's and MCP's.
    """
    kind = block.get("type")
    if kind == "image_url":
        address = block.get("image_url")
        return _linked_image(address.get("url") if isinstance(address, Mapping) else address)
    if kind in ("input_image", "computer_screenshot"):
        return _linked_image(block.get("image_url"))
    if kind == "image_generation_call":
        return _inline_image(block.get("result"))
    for key in ("inline_data", "inlineData", "file_data", "fileData", "resource"):
        if isinstance(inner := block.get(key), Mapping) and _is_image_type(inner):
            return _read_image(inner)
    if kind in ("file", "input_file"):
        file = block["file"] if isinstance(block.get("file"), Mapping) else block
        if (data := str(file.get("file_data") or "").strip())[:11].lower() == "data:image/":
            return _linked_image(data)
    inner = block.get("source")
    if kind == "image" or (kind in ("file", "media") and _is_image_type(block)):
        return _read_image(inner if isinstance(inner, Mapping) else block)
    if kind is None and isinstance(block.get("image"), Mapping):
        inner = block["image"].get("source")
        return _inline_image(inner.get("bytes") if isinstance(inner, Mapping) else None)
    return None


def _is_image_type(block: Mapping[str, Any]) -> bool:
    declared = block.get("mime_type") or block.get("mimeType") or block.get("media_type")
    return str(declared or "").lower().startswith("image/")


def _read_image(block: Mapping[str, Any]) -> StoredImage:
    data = next((block[key] for key in ("base64", "data", "bytes", "blob", "image") if block.get(key)), None)
    if data:
        return _inline_image(data)
    return _linked_image(
        next((block[key] for key in ("url", "file_uri", "fileUri", "image_url") if block.get(key)), None)
    )


def _inline_image(data: Any) -> StoredImage:
    if isinstance(data, (bytes, bytearray)):
        return {"base64": base64.b64encode(data).decode()}
    if not isinstance(data, str) or is_data_url(data) or "://" in data[:10]:
        return _linked_image(data)
    if "." in data:  # a path
        return _linked_image(None)
    return {"base64": _canonical(data)}


def _canonical(encoded: str) -> str:
    """Base64 text in the standard alphabet, with padding and without breaks; unchanged if it can't be decoded."""
    if _CANONICAL.fullmatch(encoded):
        return encoded
    try:
        return base64.b64encode(decode_base64(encoded)).decode()
    except ValueError:
        return encoded


def _linked_image(url: Any) -> StoredImage:
    if not isinstance(url, str) or not url.strip():
        return {"refused": "This picture can't be opened where it is stored; send its data or a URL instead."}
    url = url.strip()
    found = _DATA_URL.match(url)
    return {"base64": _canonical(url[found.end() :])} if found else {"url": url}
