"""The tool that lets an agent ask its own question about pictures. Knows LangChain's tools and our vision client."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal

from langchain_core.tools import ArgsSchema, BaseTool, InjectedToolArg, ToolException
from pydantic import BaseModel, Field, PrivateAttr, SecretStr, field_validator

from langchain_minigpt4.images import StoredImage, images_in
from minigpt4_serve.client import (
    DEFAULT_QUESTION,
    MAX_IMAGES,
    PictureSources,
    Progress,
    VisionAnswer,
    VisionClient,
    is_handle,
    read_each,
    server_address,
    server_key,
    wait_for,
)
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error
from minigpt4_serve.images import EncodedImage, ImageLimits

__all__ = ["MiniGPT4VisionTool"]

_DESCRIPTION = (
    "Ask a vision model one question about one or more pictures and get its answer as text. "
    "You can't see pictures yourself: in this conversation they have names such as image_1. "
    "Ask what you need to know, specifically; ask again for other details. Give several pictures to compare them."
)
_BAD_ARGUMENTS = "Call this tool with 'question', a text, and 'images', a list of pictures' names such as image_1."

_HANDLE = re.compile(r"\bimage_\d+\b", re.IGNORECASE)
_HANDLES = re.compile(r"[\s\[\]\"',]*(?:image_\d+[\s\[\]\"',]*)+", re.IGNORECASE)
# What stands for a picture in the conversation, copied with more of it than the name.
_COPIED = re.compile(r"[\s\[\"'`]*(image_\d+)(?:: .*|[\s\]\"'`]*)", re.IGNORECASE | re.DOTALL)

Result = tuple[str, dict[str, Any]]


class _Arguments(BaseModel):
    """What the model fills in; ``runtime`` is the agent's business and hidden from it."""

    question: str = Field(DEFAULT_QUESTION, description="What you want to know about the picture or pictures.")
    images: list[str] = Field(description="The pictures to look at: their names in this conversation, such as image_1.")
    runtime: Annotated[Any, InjectedToolArg] = None

    @field_validator("images", mode="before")
    @classmethod
    def _text_is_a_list(cls, value: Any) -> Any:
        """Models also write ``image_1``, ``image_1, image_2`` or a list inside a text."""
        if not isinstance(value, str):
            return value
        return _HANDLE.findall(value) if _HANDLES.fullmatch(value) else [value]


class MiniGPT4VisionTool(BaseTool):
    """Eyes for an agent: a question about pictures goes to a vision server, text comes back.

    The model names pictures by handles (``image_1``), found in the conversation's state or its messages; by https
    addresses and paths only where ``allow_urls`` and ``allowed_folders`` say so. The result's text is marked as data
    and limited in length; its artifact has ``digests``, ``usage``, ``timings``, ``boxes`` and more (see
    ``VisionAnswer``). A failure is a ``ToolException`` that agents receive as a message with status ``error``. While
    the server works, the agent's stream of ``custom`` events shows the pieces.

    Any server that speaks the OpenAI API and sees pictures will do.
    """

    name: str = "look_at_pictures"
    description: str = _DESCRIPTION
    args_schema: ArgsSchema | None = _Arguments
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: bool | str | Callable[[ToolException], str] | None = True
    handle_validation_error: Any = _BAD_ARGUMENTS

    base_url: str = Field(default_factory=server_address)
    """The server; usually ends in ``/v1``."""
    api_key: SecretStr | None = Field(default_factory=server_key)
    """Not needed for a server without a key."""
    model: str | None = None
    """The server's only model if not given."""
    allow_urls: bool | list[str] = False
    """True for every public https address, or a list of hosts: a model can put words of a chat into an address."""
    allowed_folders: list[Path] = []
    """Folders whose pictures may be read, with all below them."""
    timeout_s: float = 60.0
    """Longest silence of the server."""
    max_wait_s: float = 10.0
    """How long a busy server is waited for, in all."""
    max_images: int = MAX_IMAGES
    """Pictures of one question."""
    max_image_bytes: int = ImageLimits().max_bytes
    max_answer_chars: int = 2000
    temperature: float | None = 0.0
    """None leaves it to the server."""
    cache_size: int = 128
    """Answers that are remembered by pictures, question and model."""

    _client: VisionClient = PrivateAttr()
    _sources: PictureSources = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Build what the fields describe.

        Raises:
            InvalidRequest: ``base_url`` isn't an address.
        """
        super().model_post_init(context)
        self._client = VisionClient(
            self.base_url,
            self.api_key,
            model=self.model,
            timeout_s=self.timeout_s,
            max_wait_s=self.max_wait_s,
            temperature=self.temperature,
            max_chars=self.max_answer_chars,
            cache_size=self.cache_size,
        )
        limits = ImageLimits(max_bytes=self.max_image_bytes)
        self._sources = PictureSources(tuple(self.allowed_folders), self.allow_urls, limits)
        if self.description == _DESCRIPTION:
            more = [" Public https addresses of pictures work, too."] if self.allow_urls else []
            more += [" Paths of picture files work, too."] if self.allowed_folders else []
            self.description = "".join([_DESCRIPTION, *more])

    def _run(self, images: list[str], question: str = DEFAULT_QUESTION, runtime: Any = None) -> Result:
        return wait_for(lambda: self._arun(images, question, runtime))

    async def _arun(self, images: list[str], question: str = DEFAULT_QUESTION, runtime: Any = None) -> Result:
        try:
            pictures = await self._open(images, _state(runtime))
            answer = await self._ask(_without_handles(question, images), pictures, runtime)
        except MiniGPT4Error as error:
            raise ToolException(error.message) from error
        return answer.for_model(), answer.model_dump(mode="json")

    async def _open(self, references: Sequence[str], state: Mapping[str, Any]) -> list[EncodedImage]:
        messages, taken = state.get("messages") or [], state.get("minigpt4_images") or {}
        known = await asyncio.to_thread(images_in, messages, taken, max_bytes=self.max_image_bytes)
        return await read_each(references, lambda name: self._open_one(_name(name), known), limit=self.max_images)

    async def _open_one(self, reference: str, known: Mapping[str, StoredImage]) -> EncodedImage:
        image = known.get(reference)
        if image is None:
            if is_handle(reference) or not self._may_open_others(reference):
                names = ", ".join(known) or "none so far"
                raise InvalidRequest(f"There is no picture of this name. The conversation's pictures: {names}.")
            return await self._sources.read(reference)
        if "refused" in image:
            raise InvalidRequest(image["refused"])
        return await self._sources.read(image["url"] if "url" in image else f"data:;base64,{image['base64']}")

    def _may_open_others(self, reference: str) -> bool:
        """A plain word, where no folders are allowed, is a mistaken name rather than a path."""
        return bool(self.allowed_folders) or ":" in reference or "/" in reference or "\\" in reference

    async def _ask(self, question: str, pictures: Sequence[EncodedImage], runtime: Any) -> VisionAnswer:
        write = getattr(runtime, "stream_writer", None)
        async with aclosing(self._client.stream(question, pictures)) as events:
            async for event in events:
                if isinstance(event, VisionAnswer):
                    return event
                if write is not None:
                    write(_custom_event(event, getattr(runtime, "tool_call_id", None)))
        raise AssertionError("a stream ends with its answer or an error")


def _state(runtime: Any) -> Mapping[str, Any]:
    """The graph's state as a mapping, whichever way the developer declared it; empty outside of graphs."""
    state = getattr(runtime, "state", None)
    if isinstance(state, Mapping):
        return state
    if isinstance(state, list):  # a graph whose whole state is its messages
        return {"messages": state}
    return {name: getattr(state, name, None) for name in ("messages", "minigpt4_images")}


def _custom_event(progress: Progress, tool_call_id: str | None) -> dict[str, Any]:
    return {
        "type": "minigpt4_progress",
        "tool_call_id": tool_call_id,
        "text": progress.text,
        "ahead": progress.ahead,
        "wait_s": progress.wait_s,
    }


def _name(reference: str) -> str:
    """The bare handle if the reference is one, however it is written."""
    found = _COPIED.fullmatch(reference)
    return found[1].lower() if found else reference.strip()


def _without_handles(question: str, references: Sequence[str]) -> str:
    """The question in words that the vision model understands: it knows no handles, only the order of pictures."""
    names = [_name(reference) for reference in references]

    def words(found: re.Match[str]) -> str:
        handle = found[0].lower()
        if handle not in names:
            return found[0]
        return "the picture" if len(names) == 1 else f"picture {names.index(handle) + 1}"

    return _HANDLE.sub(words, question)
