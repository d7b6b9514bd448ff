"""Pictures in LangChain messages, in every form of block in use ↔ opaque handles. Knows messages, no server.

A picture becomes one line of text with its handle (``image_1``); its bytes go into the conversation's state.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from langchain_core.messages import BaseMessage

__all__ = ["StoredImage", "images_in", "take_images"]

# A picture's address inside running text, as people paste it.
_PASTED = re.compile(r"data:image/[\w.+-]+(?:;[\w.=-]+)*;base64,([A-Za-z0-9+/]+={0,2})", re.IGNORECASE)
_NUMBER = re.compile(r"(?<!\d)\d+$")
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)

_M = TypeVar("_M", bound=BaseMessage)


class StoredImage(TypedDict, total=False):
    """One picture of a conversation, as any checkpointer can store it. Exactly one of the keys is there.

    Attributes:
        base64: the encoded file.
        url: where it lies; nobody has fetched it.
        refused: why it can't be looked at.
    """

    base64: str
    url: str
    refused: str


def take_images(
    messages: Sequence[BaseMessage], known: Mapping[str, StoredImage], *, max_bytes: int
) -> tuple[list[BaseMessage], dict[str, StoredImage]]:
    """The messages that hold pictures, rewritten with handles, and the pictures that are new by their handles.

    A picture that is known already keeps its handle.
    """
    shelf = _Shelf(known, max_bytes)
    changed = [after for before in messages if (after := _rewrite(before, shelf)) is not before]
    return changed, shelf.new


def images_in(
    messages: Sequence[BaseMessage], known: Mapping[str, StoredImage], *, max_bytes: int
) -> dict[str, StoredImage]:
    """All pictures of a conversation by their handles, whether they were taken out before or still stand in it."""
    return {**known, **take_images(messages, known, max_bytes=max_bytes)[1]}


class _Shelf:
    """Gives each picture its handle."""

    def __init__(self, known: Mapping[str, StoredImage], max_bytes: int) -> None:
        self._handles = {_identity(image): handle for handle, image in known.items()}
        # After the highest, not after the last: a developer may have taken pictures away.
        self._count = max((int(found[0]) for handle in known if (found := _NUMBER.search(handle))), default=0)
        self._max_base64 = (max_bytes + 2) // 3 * 4
        self._limit = f"{max_bytes / 2**20:.0f} MiB"
        self.new: dict[str, StoredImage] = {}

    def put(self, image: StoredImage) -> str:
        """The line of text that stands for the picture."""
        if len(image.get("base64", "")) > self._max_base64:
            image = {"refused": f"This picture has more than {self._limit}; a smaller one is needed."}
        handle = None if "refused" in image else self._handles.get(_identity(image))
        if handle is None:
            self._count += 1
            handle = f"image_{self._count}"
            self.new[handle] = image
            self._handles[_identity(image)] = handle
        return f"[{handle}: {image.get('refused', 'a picture; look at it with a tool, by this name')}]"


def _identity(image: StoredImage) -> tuple[tuple[str, Any], ...]:
    return tuple(image.items())


def _rewrite(message: _M, shelf: _Shelf) -> _M:
    content = _without_pictures(message.content, shelf)
    return message if content is message.content else message.model_copy(update={"content": content})


def _without_pictures(content: Any, shelf: _Shelf) -> Any:
    """The content with text in the place of pictures; the very same object if there are none."""
    if isinstance(content, str):
        if _PASTED.search(content) is None:
            return content
        return _PASTED.sub(lambda found: shelf.put({"base64": found[1]}), content)
    if isinstance(content, list):
        parts = [_without_pictures(part, shelf) for part in content]
        return content if all(after is before for after, before in zip(parts, content, strict=True)) else parts
    if not isinstance(content, dict):
        return content
    if (image := _picture(content)) is not None:
        return {"type": "text", "text": shelf.put(image)}
    for key in ("text", "content", "output", "value"):  # words; a block that wraps others, such as a tool's result
        if key in content and (inner := _without_pictures(content[key], shelf)) is not content[key]:
            return {**content, key: inner}
    return content


def _picture(block: Mapping[str, Any]) -> StoredImage | None:
    """The picture of a block, None if it is another kind of block.

    Known forms: LangChain's standard blocks of both generations, OpenAI's for both of its APIs, Anthropic's, Google's,
    Amazon's and MCP's.
    """
    kind = block.get("type")
    if kind == "image_url":
        address = block.get("image_url")
        return _located(address.get("url") if isinstance(address, Mapping) else address)
    if kind in ("input_image", "computer_screenshot"):
        return _located(block.get("image_url"))
    mime = str(block.get("mime_type") or block.get("mimeType") or block.get("media_type") or "")
    if kind == "image_generation_call":
        return _held(block.get("result"))
    inner = block.get("source")
    if kind in ("image", "file", "media") and (kind == "image" or mime.lower().startswith("image/")):
        source = inner if isinstance(inner, Mapping) else block
        data = source.get("base64") or source.get("data") or source.get("bytes")
        return _held(data) if data else _located(source.get("url") or source.get("file_uri"))
    if kind is None and isinstance(block.get("image"), Mapping):
        inner = block["image"].get("source")
        return _held(inner.get("bytes") if isinstance(inner, Mapping) else None)
    return None


def _held(data: Any) -> StoredImage:
    if isinstance(data, (bytes, bytearray)):
        return {"base64": base64.b64encode(data).decode()}
    if not isinstance(data, str) or data[:5].lower() == "data:":
        return _located(data)
    return {"base64": "".join(data.split()) if "\n" in data else data}


def _located(url: Any) -> StoredImage:
    if not isinstance(url, str) or not url:
        return {"refused": "This picture is stored where it can't be opened; it must be sent itself."}
    found = _DATA_URL.match(url)
    return {"base64": url[found.end() :]} if found else {"url": url}
