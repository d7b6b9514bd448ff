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
    """The model by one of its names; ``root`` is the first of them.

    ``context_length`` and ``image_tokens`` (of one image) in tokens, ``max_image_bytes`` encoded. ``max_model_len`` is
    the context's length by the name that vLLM gives it.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    context_length: int
    max_model_len: int
    image_tokens: int
    max_images: int
    max_image_bytes: int
    capabilities: Capabilities
    defaults: ModelDefaults


class ModelList(ResponseModel):
    """The only model, once by each of its names."""

    object: Literal["list"]
    data: list[ModelCard]
