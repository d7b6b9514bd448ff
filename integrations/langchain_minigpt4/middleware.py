"""Takes pictures out of an agent's messages and leaves handles. Knows LangChain's agents, no vision server."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain.agents.middleware.types import OmitFromOutput
from langgraph.channels import DeltaChannel
from langgraph.runtime import Runtime

from langchain_minigpt4.images import StoredImage, take_images
from minigpt4_serve.images import ImageLimits

__all__ = ["ImageHandles", "ImageHandlesState"]


def _add(known: Mapping[str, StoredImage], news: Sequence[Mapping[str, StoredImage]]) -> dict[str, StoredImage]:
    merged = dict(known)
    for new in news:
        merged.update(new)
    return merged


class ImageHandlesState(AgentState[Any]):
    """The agent's state with its pictures: handle → picture.

    No output of the agent; an input only for an agent that shall know another one's pictures. A checkpointer stores
    each picture once, not all of them with every step.
    """

    minigpt4_images: NotRequired[Annotated[dict[str, StoredImage], OmitFromOutput, DeltaChannel(_add, dict)]]


class ImageHandles(AgentMiddleware[ImageHandlesState, Any, Any]):
    """Makes a text-only model fit for conversations with pictures.

    Before the model is called, each picture in a message, of people or of tools, is moved to the agent's state and one
    line with its handle (``image_1``) stands in its place. ``MiniGPT4VisionTool`` finds it there::

        agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()])

    The model never receives a byte of a picture. Follow-ups find pictures of earlier turns if the agent has a
    checkpointer or is given the whole conversation again.

    Args:
        max_image_bytes: larger pictures are not kept; asking about one tells why.
    """

    state_schema = ImageHandlesState

    def __init__(self, *, max_image_bytes: int = ImageLimits().max_bytes) -> None:
        super().__init__()
        self._max_bytes = max_image_bytes

    def before_model(self, state: ImageHandlesState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Move pictures that arrived since the last call."""
        known = state.get("minigpt4_images") or {}
        messages, images = take_images(state["messages"], known, max_bytes=self._max_bytes)
        if not messages:
            return None
        # Messages keep their ids, so they replace what they were.
        return {"messages": messages, "minigpt4_images": images}

    async def abefore_model(self, state: ImageHandlesState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """The same for agents that run in an event loop, which goes on meanwhile."""
        return await asyncio.to_thread(self.before_model, state, runtime)
