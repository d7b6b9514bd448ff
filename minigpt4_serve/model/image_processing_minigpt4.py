"""Pixels as the original made them: RGB, stretched to a square with PIL's bicubic filter, CLIP's mean and deviation."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from minigpt4_serve.images import to_rgb

__all__ = ["MiniGPT4ImageProcessor"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class MiniGPT4ImageProcessor(BaseImageProcessor):
    """``image_size`` is the side of the square in pixels: 224, or 448 for v2.

    The aspect ratio is ignored and nothing is cropped: the published weights saw pictures like this, and bit-equal
    input needs PIL's resize (tensor resizes differ). Transparency is dropped, not composited, as there.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """One picture as float32 ``[3, image_size, image_size]``."""
        square = _stretch(to_rgb(image), self.image_size)
        pixels = torch.from_numpy(numpy.array(square)).permute(2, 0, 1).float().div(255)  # [3, side, side]
        mean, std = torch.tensor(_MEAN).view(3, 1, 1), torch.tensor(_STD).view(3, 1, 1)
        return (pixels - mean).div(std)

    def preprocess(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Pictures as ``pixel_values`` float32 ``[N, 3, image_size, image_size]``."""
        batch = [images] if isinstance(images, Image.Image) else list(images)
        pixels = torch.stack([self.to_tensor(image) for image in batch])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def _stretch(image: Image.Image, side: int) -> Image.Image:
    """The picture as a square, first one way and then the other.

    Which way comes first changes pixels, because what overshoots is cut off in between, and for tall pictures Pillow 13
    takes another order than the versions before. Here it is written out, as it was when the original's numbers were
    recorded: pixels are the same with every Pillow.
    """
    width, height = image.size
    tall = height - side > 2 * max(width - side, 0)
    halfway = (width, side) if tall else (side, height)
    return image.resize(halfway, Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.BICUBIC)
