"""The LangChain tool with which an agent asks its own questions about images."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal

from langchain_core.tools import ArgsSchema, BaseTool, InjectedToolArg, ToolException
from pydantic import BaseModel, Field, PrivateAttr, SecretStr, field_validator

from langchain_minigpt4.images import StoredImage, all_images
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
    split_references,
    wait_for,
)
from minigpt4_serve.client.references import HANDLE_IN_TEXT
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error
from minigpt4_serve.images import EncodedImage, ImageLimits

__all__ = ["MiniGPT4VisionTool"]

_DESCRIPTION = (
    "Ask a vision model one question about one or more pictures and get its answer as text. "
    "You can't see pictures yourself: in this conversation they have names such as image_1. "
    "Ask what you need to know, specifically; ask again for other details. Give several pictures to compare them."
)
_BAD_ARGUMENTS = "Call this tool with 'question', a text, and 'images', a list of pictures' names such as image_1."

_MAX_NAMES = 20

# The line that replaces an image in the conversation, copied with more of it than the handle.
_COPIED = re.compile(r"[\s\[\"'`]*(image_\d+)(?:: .*|[\s\]\"'`]*)", re.IGNORECASE | re.DOTALL)

Result = tuple[str, dict[str, Any]]


class _Arguments(BaseModel):
    """The arguments that the model writes; ``runtime`` is filled in by the agent."""

    question: str = Field(DEFAULT_QUESTION, description="What you want to know about the picture or pictures.")
    images: list[str] = Field(description="The pictures to look at: their names in this conversation, such as image_1.")
    runtime: Annotated[Any, InjectedToolArg] = None

    @field_validator("images", mode="before")
    @classmethod
    def _split_text(cls, value: Any) -> Any:
        return split_references(value)


class MiniGPT4VisionTool(BaseTool):
    """Vision for an agent: sends a question about images to a vision server and returns its answer as text.

    The model names images by handles (``image_1``), which are looked up in the conversation's state and messages; by
    https addresses and paths only if ``allow_urls`` and ``allowed_folders`` permit it. The result's text is marked as
    data and limited in length; its artifact has the fields of ``VisionAnswer``. A failure is a ``ToolException`` that
    agents receive as a message with status ``error``. While the server works, the agent's stream of ``custom`` events
    shows queue positions, retries and deltas.

    Works with any OpenAI-compatible server of a vision model.
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
    """The only model that the server lists if not given."""
    allow_urls: bool | list[str] = False
    """True for every public https address, or a list of hosts: a model can put text of a chat into an address."""
    allowed_folders: list[Path] = []
    """Images in and below these folders may be read."""
    timeout_s: float = 60.0
    """Longest silence of the server, in seconds."""
    max_wait_s: float = 10.0
    """All waits for a busy server within one call, in seconds."""
    max_images: int = MAX_IMAGES
    """Most images of one question."""
    max_image_bytes: int = ImageLimits().max_bytes
    max_answer_chars: int = 2000
    temperature: float | None = 0.0
    """None for the server's default."""
    cache_size: int = 128
    """Number of cached answers, by images, question and model."""

    _client: VisionClient = PrivateAttr()
    _sources: PictureSources = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Build client and sources from the fields.

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
        messages = state.get("messages") or []
        extracted = state.get("minigpt4_images") or {}
        known = await asyncio.to_thread(all_images, messages, extracted, max_bytes=self.max_image_bytes)
        return await read_each(references, lambda name: self._open_one(_name(name), known), limit=self.max_images)

    async def _open_one(self, reference: str, known: Mapping[str, StoredImage]) -> EncodedImage:
        image = known.get(reference)
        if image is None:
            if is_handle(reference) or not self._may_open_others(reference):
                raise _unknown_handle(known)
            return await self._sources.read(reference)
        if "refused" in image:
            raise InvalidRequest(image["refused"])
        return await self._sources.read(image["url"] if "url" in image else f"data:;base64,{image['base64']}")

    def _may_open_others(self, reference: str) -> bool:
        """Whether it may be a path or an address; a plain word without allowed folders is a mistaken handle."""
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
    """The graph's state as a mapping, however it is declared; empty outside of graphs."""
    state = getattr(runtime, "state", None)
    if isinstance(state, Mapping):
        return state
    if isinstance(state, list):  # a graph whose whole state is its messages
        return {"messages": state}
    return {name: getattr(state, name, None) for name in ("messages", "minigpt4_images")}


def _unknown_handle(known: Mapping[str, StoredImage]) -> InvalidRequest:
    names = ", ".join(list(known)[-_MAX_NAMES:]) or "none so far"
    # Handles are counted from 1, so a gap at the beginning means that images were dropped.
    dropped = known and "image_1" not in known
    older = " Older ones are no longer kept; ask for them to be sent again." if dropped else ""
    return InvalidRequest(f"There is no picture of this name. The conversation's pictures: {names}.{older}")


def _custom_event(progress: Progress, tool_call_id: str | None) -> dict[str, Any]:
    return {
        "type": "minigpt4_progress",
        "tool_call_id": tool_call_id,
        "text": progress.text,
        "ahead": progress.ahead,
        "wait_s": progress.wait_s,
    }


def _name(reference: str) -> str:
    """The bare handle, if the reference contains one."""
    found = _COPIED.fullmatch(reference)
    return found[1].lower() if found else reference.strip()


def _without_handles(question: str, references: Sequence[str]) -> str:
    """The question with the numbers of images in place of handles, which mean nothing to the vision model."""
    names = [_name(reference) for reference in references]

    def words(found: re.Match[str]) -> str:
        handle = found[0].lower()
        if handle not in names:
            return found[0]
        return "the picture" if len(names) == 1 else f"picture {names.index(handle) + 1}"

    return HANDLE_IN_TEXT.sub(words, question)
