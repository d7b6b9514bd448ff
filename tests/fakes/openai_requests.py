"""What clients send to the fake OpenAI server: requests as tests read them, and what is wrong with them."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

FIELDS = frozenset({"model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens"})
OPENAI_FIELDS = FIELDS | {"stop", "n", "seed", "max_completion_tokens", "logprobs", "top_logprobs"}
_MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # several JPEGs in one file; servers accept it as the first of them
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
"""Pillow's format → what servers accept. Independent of Pillow's own table, which says image/mpo."""


@dataclass(frozen=True)
class ChatRequest:
    """A request to ``/chat/completions``."""

    body: dict[str, Any]
    key: str

    @property
    def text(self) -> str:
        """Text of the last message."""
        return read_text(self.body["messages"][-1])

    @property
    def transcript(self) -> list[tuple[str, str]]:
        """Role and text of every message."""
        return [(message["role"], read_text(message)) for message in self.body["messages"]]

    @property
    def questions(self) -> list[str]:
        return [text for role, text in self.transcript if role == "user"]

    @property
    def images(self) -> list[bytes]:
        """The files of all images, oldest first."""
        return [_file(part) for message in self.body["messages"] for part in image_parts(message)]

    @property
    def colors(self) -> list[str]:
        """Color in the middle of each image."""
        return [_color(data) for data in self.images]


def read_text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")


def image_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    parts = message["content"] if isinstance(message["content"], list) else []
    return [part for part in parts if part["type"] == "image_url"]


def request_mistakes(body: dict[str, Any], fields: frozenset[str]) -> Iterator[str]:
    """Mistakes of any client."""
    if unknown := body.keys() - fields:
        yield f"unknown fields {sorted(unknown)}"
    for message in body["messages"]:
        if isinstance(message["content"], list):
            if kinds := {part["type"] for part in message["content"]} - {"text", "image_url"}:
                yield f"unknown parts {sorted(kinds)}"
            yield from filter(None, map(_mistake_in_image, image_parts(message)))


def chat_mistakes(body: dict[str, Any], models: list[str]) -> Iterator[str]:
    """Mistakes of clients that are made for chats."""
    roles = [message["role"] for message in body["messages"] if message["role"] != "system"]
    if roles != (["user", "assistant"] * len(roles))[: len(roles)] or roles[-1] != "user":
        yield f"roles don't alternate: {roles}"
    if body.get("stream") is not True:
        yield "not streamed"
    if body.get("model") not in models:
        yield f"model {body.get('model')} isn't listed"


def _file(part: dict[str, Any]) -> bytes:
    return base64.b64decode(part["image_url"]["url"].partition(",")[2], validate=True)


def _mistake_in_image(part: dict[str, Any]) -> str | None:
    header = part["image_url"]["url"].partition(",")[0]
    if not header.startswith("data:image/") or not header.endswith(";base64"):
        return f"not a data: URL of an image: {header[:60]}"
    try:
        image = Image.open(io.BytesIO(_file(part)))
        image.load()
    except (ValueError, OSError) as error:
        return f"not an image: {error}"
    if image.format not in _MEDIA_TYPES:
        return f"a format that servers don't accept: {image.format}"
    expected = _MEDIA_TYPES[image.format]
    return None if header == f"data:{expected};base64" else f"{expected} is declared as {header}"


def _color(data: bytes) -> str:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    names = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue", (255, 255, 0): "yellow"}
    return names.get(image.getpixel((image.width // 2, image.height // 2)), "some color")  # type: ignore[arg-type]
