"""Preprocessing as in the original: RGB, resized to a square by Pillow's bicubic filter, CLIP's mean and deviation."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from minigpt4_serve.images import DecodedImage

__all__ = ["MiniGPT4ImageProcessor"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class MiniGPT4ImageProcessor(BaseImageProcessor):
    """``image_size`` is the side of the square in pixels: 224, or 448 for v2.

    As in the original's training, the aspect ratio is ignored, nothing is cropped, and transparency is dropped instead
    of composited. Bit-equal pixels require Pillow's resize; resizing tensors gives other values.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size

    def to_tensor(self, image: Image.Image | DecodedImage) -> torch.Tensor:
        """One image as float32 ``[3, image_size, image_size]``."""
        decoded = image if isinstance(image, DecodedImage) else DecodedImage(image)
        square = _resize_to_square(decoded, self.image_size)
        pixels = torch.from_numpy(numpy.array(square)).permute(2, 0, 1).float().div(255)  # [3, side, side]
        mean = torch.tensor(_MEAN).view(3, 1, 1)
        std = torch.tensor(_STD).view(3, 1, 1)
        return (pixels - mean).div(std)

    def preprocess(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Images as ``pixel_values`` float32 ``[N, 3, image_size, image_size]``."""
        batch = [images] if isinstance(images, Image.Image) else list(images)
        pixels = torch.stack([self.to_tensor(image) for image in batch])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def _resize_to_square(image: DecodedImage, side: int) -> Image.Image:
    """Resize in two passes, one per axis.

    The order of the passes changes pixels, because values that overshoot are clipped in between, and Pillow 13 changed
    its order for tall images. Two explicit passes in the order of older versions, with which the original's numbers
    were recorded, give the same pixels with every version of Pillow. The first pass goes strip by strip, so that a
    large image needs no second copy.
    """
    width, height = image.size
    tall = height - side > 2 * max(width - side, 0)
    between = Image.new("RGB", (width, side) if tall else (side, height))
    for (left, top, right, bottom), strip in image.columns() if tall else image.rows():
        size = (right - left, side) if tall else (side, bottom - top)
        between.paste(strip.resize(size, Image.Resampling.BICUBIC), (left, top))
    return between.resize((side, side), Image.Resampling.BICUBIC)
