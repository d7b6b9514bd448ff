"""The served model as ``GET /v1/models`` lists it."""

from typing import Literal

from minigpt4_serve.server.openai.wire import ResponseModel

__all__ = ["Capabilities", "ModelCard", "ModelDefaults", "ModelList"]


class Capabilities(ResponseModel):
    """What the model and this server can do."""

    vision: bool
    streaming: bool
    max_beams: int
    boxes: bool


class ModelDefaults(ResponseModel):
    """Parameters of a request that names none."""

    temperature: float
    top_p: float
    max_tokens: int


class ModelCard(ResponseModel):
    """The model. ``context_length`` and ``image_tokens`` (of one image) in tokens, ``max_image_bytes`` encoded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    image_tokens: int
    max_images: int
    max_image_bytes: int
    capabilities: Capabilities
    defaults: ModelDefaults


class ModelList(ResponseModel):
    """The only model, in a list."""

    object: Literal["list"]
    data: list[ModelCard]
