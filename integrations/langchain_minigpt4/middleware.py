"""An agent middleware that replaces images in messages with handles."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain.agents.middleware.types import OmitFromOutput
from langgraph.channels import DeltaChannel
from langgraph.runtime import Runtime

from langchain_minigpt4.images import StoredImage, extract_images
from minigpt4_serve.images import ImageLimits

__all__ = ["ImageHandles", "ImageHandlesState"]


def _merge(
    known: Mapping[str, StoredImage], updates: Sequence[Mapping[str, StoredImage | None]]
) -> dict[str, StoredImage]:
    merged = dict(known)
    for update in updates:
        for handle, image in update.items():
            if image is None:
                merged.pop(handle, None)
            else:
                merged[handle] = image
    return merged


def _stored_bytes(image: StoredImage) -> int:
    return len(image.get("base64", "")) * 3 // 4 + len(image.get("url", ""))


class ImageHandlesState(AgentState[Any]):
    """The agent's state with its images: handle → image.

    They aren't part of the agent's output, and of its input only to share another agent's images. A checkpointer stores
    each image once, not all of them with every step.
    """

    minigpt4_images: NotRequired[Annotated[dict[str, StoredImage], OmitFromOutput, DeltaChannel(_merge, dict)]]


class ImageHandles(AgentMiddleware[ImageHandlesState, Any, Any]):
    """Keeps images out of the messages, for text-only models and small contexts.

    Before each call of the model, every image in a message, of people or of tools, is moved to the agent's state and
    replaced by one line with its handle (``image_1``). ``MiniGPT4VisionTool`` finds it there::

        agent = create_agent(model, tools=[MiniGPT4VisionTool()], middleware=[ImageHandles()])

    The model never receives an image. Follow-ups find images of earlier turns if the agent has a checkpointer or is
    given the whole conversation again.

    Args:
        max_image_bytes: larger images aren't kept; a question about one is answered with the reason.
        max_images: most images that are kept; the oldest are dropped, and a question about one says so.
        max_total_bytes: of all images that are kept; as ``max_images``.
    """

    state_schema = ImageHandlesState

    def __init__(
        self,
        *,
        max_image_bytes: int = ImageLimits().max_bytes,
        max_images: int = 100,
        max_total_bytes: int = 100 * 2**20,
    ) -> None:
        super().__init__()
        self._max_bytes = max_image_bytes
        self._max_images = max_images
        self._max_total_bytes = max_total_bytes

    def before_model(self, state: ImageHandlesState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Move images that were added since the last call."""
        known = state.get("minigpt4_images") or {}
        messages, images = extract_images(state["messages"], known, max_bytes=self._max_bytes)
        if not messages:
            return None
        # Messages keep their ids, so they replace what they were.
        return {"messages": messages, "minigpt4_images": self._within_bounds(known, images)}

    def _within_bounds(
        self, known: Mapping[str, StoredImage], new: Mapping[str, StoredImage]
    ) -> dict[str, StoredImage | None]:
        """The new images, and None for those that are dropped: the oldest, but never the last one."""
        images = {**known, **new}
        count = len(images)
        total = sum(map(_stored_bytes, images.values()))
        update: dict[str, StoredImage | None] = dict(new)
        for handle, image in list(images.items())[:-1]:
            if count <= self._max_images and total <= self._max_total_bytes:
                break
            count -= 1
            total -= _stored_bytes(image)
            update[handle] = None
        return update

    async def abefore_model(self, state: ImageHandlesState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """``before_model`` in a thread, for agents that run in an event loop."""
        return await asyncio.to_thread(self.before_model, state, runtime)
