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
_DATA_URL = re.compile(r"\s*data:[^,]*;\s*base64,", re.IGNORECASE)
_CANONICAL = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")

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


def _replace_images(content: Any, handles: _Handles) -> Any:
    """The content with text in place of its images; the same object if there are none."""
    if isinstance(content, str):
        return _replace_pasted(content, handles)
    if isinstance(content, list):
        parts = [_replace_images(part, handles) for part in content]
        return content if all(after is before for after, before in zip(parts, content, strict=True)) else parts
    if not isinstance(content, dict):
        return content
    if (image := _find_image(content)) is not None:
        return {"type": "text", "text": handles.assign(image)}
    # Text, or a block that wraps others, such as a tool's result.
    for key in ("text", "content", "output", "value", "json", "result"):
        if key in content and (inner := _replace_images(content[key], handles)) is not content[key]:
            return {**content, key: inner}
    return content


def _replace_pasted(text: str, handles: _Handles) -> str:
    """Text with handles in place of the encoded images in it; the same object if there are none."""
    parts: list[str] = []
    end = 0
    for image in find_pasted_images(text):
        parts += [text[end : image.start], handles.assign({"base64": _canonical(image.base64)})]
        end = image.end
    return "".join([*parts, text[end:]]) if parts else text


def _find_image(block: Mapping[str, Any]) -> StoredImage | None:
    """The image of a content block; None if the block isn't an image.

    Formats: LangChain's standard blocks (v0 and v1), OpenAI's (Chat Completions and Responses), Anthropic's,
    Google's, Amazon's and MCP's.
    """
    kind = block.get("type")
    if kind == "image_url":
        address = block.get("image_url")
        return _linked_image(address.get("url") if isinstance(address, Mapping) else address)
    if kind in ("input_image", "computer_screenshot"):
        return _linked_image(block.get("image_url"))
    mime = str(block.get("mime_type") or block.get("mimeType") or block.get("media_type") or "")
    if kind == "image_generation_call":
        return _inline_image(block.get("result"))
    inner = block.get("source")
    if kind in ("image", "file", "media") and (kind == "image" or mime.lower().startswith("image/")):
        source = inner if isinstance(inner, Mapping) else block
        data = source.get("base64") or source.get("data") or source.get("bytes")
        return _inline_image(data) if data else _linked_image(source.get("url") or source.get("file_uri"))
    for name in ("inline_data", "inlineData", "file_data", "fileData"):  # Google's
        inner = block.get(name)
        if isinstance(inner, Mapping):
            mime = str(inner.get("mime_type") or inner.get("mimeType") or "")
            if not mime.lower().startswith("image/"):
                return None
            address = inner.get("file_uri") or inner.get("fileUri")
            return _linked_image(address) if address else _inline_image(inner.get("data"))
    if kind is None and isinstance(block.get("image"), Mapping):
        inner = block["image"].get("source")
        return _inline_image(inner.get("bytes") if isinstance(inner, Mapping) else None)
    return None


def _inline_image(data: Any) -> StoredImage:
    if isinstance(data, (bytes, bytearray)):
        return {"base64": base64.b64encode(data).decode()}
    if not isinstance(data, str) or is_data_url(data):
        return _linked_image(data)
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
    if not isinstance(url, str) or not url:
        return {"refused": "This picture can't be opened where it is stored; send its data or a URL instead."}
    found = _DATA_URL.match(url)
    return {"base64": _canonical(url[found.end() :])} if found else {"url": url}
