"""Preprocessing as in the original: RGB, resized to a square by Pillow's bicubic filter, CLIP's mean and deviation."""

from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from minigpt4_serve.images import DecodedImage, ImageLimits, decode_image, parse_data_url

__all__ = ["MiniGPT4ImageProcessor", "read_images"]

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

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Images, as ``read_images`` accepts them, as ``pixel_values`` float32 ``[N, 3, image_size, image_size]``."""
        pixels = torch.stack([self.to_tensor(image) for image in read_images(images)])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def read_images(images: Any) -> list[Image.Image]:
    """Images in transformers' forms as PIL images in reading order.

    Args:
        images: None, a PIL image, a path, a ``data:`` URL, an array or tensor ``[H, W]``, ``[H, W, C]`` or
            ``[C, H, W]`` (integers from 0 to 255 or floats from 0 to 1), a batch ``[N, …]`` of these, or lists of all
            of these, nested or not.

    Raises:
        ValueError: anything else, such as an address, which isn't fetched.
        OSError: a file can't be read.
        InvalidImage: a file or a ``data:`` URL holds no image of a known format.
    """
    if images is None:
        return []
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, str | Path):
        return [_open_image(images)]
    if isinstance(images, numpy.ndarray | torch.Tensor) and images.ndim <= 3:
        return [_image_from_array(images)]
    if isinstance(images, list | tuple | numpy.ndarray | torch.Tensor):
        return [image for part in images for image in read_images(part)]
    raise ValueError(f"An image is a PIL image, an array, a tensor or a path, not {type(images).__name__}.")


def _open_image(source: str | Path) -> Image.Image:
    if isinstance(source, str) and source.startswith("data:"):
        return decode_image(parse_data_url(source, ImageLimits()).data)
    if "://" in str(source):
        raise ValueError("An image is a PIL image, an array, a tensor or a path; addresses are not fetched.")
    return decode_image(Path(source).read_bytes())


_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA


def _image_from_array(array: Any) -> Image.Image:
    channels_first = isinstance(array, torch.Tensor)  # where both are possible: the convention of its library
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 2:
        array = array[:, :, None]
    first, last = (array.ndim == 3 and array.shape[axis] in _CHANNELS for axis in (0, -1))
    if first and (channels_first or not last):
        array = numpy.moveaxis(array, 0, -1)
    elif not last:
        raise ValueError(f"An image's shape is [H, W], [H, W, C] or [C, H, W], not {list(array.shape)}.")
    if array.dtype.kind in "fb":
        array = array * 255.0
    elif array.dtype.kind not in "iu":
        raise ValueError(f"An image's array holds numbers, not {array.dtype}.")
    if not ((array >= 0) & (array <= 255)).all():
        raise ValueError("An image's array holds integers from 0 to 255 or floats from 0 to 1.")
    pixels = array.round().astype(numpy.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)


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
    for (left, top, right, bottom), strip in image.strips(of_columns=tall):
        size = (right - left, side) if tall else (side, bottom - top)
        between.paste(strip.resize(size, Image.Resampling.BICUBIC), (left, top))
    return between.resize((side, side), Image.Resampling.BICUBIC)
