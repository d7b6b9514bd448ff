"""Encoded images → upright RGB pixels. The images were validated before, see ``validation``."""

from PIL import Image, ImageOps

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images.validation import open_image

__all__ = ["decode_image", "to_rgb"]


def decode_image(data: bytes) -> Image.Image:
    """Upright RGB pixels of a checked picture; the first frame of an animation.

    A phone's photo that lies on its side is turned as its EXIF says. Transparency is dropped, not composited, as the
    model saw it in training; 16-bit greys are scaled to 8 bits instead of being cut off.

    Raises:
        InvalidImage: the data is damaged.
    """
    with open_image(data) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = upright.convert("I").point(lambda value: value / 256).convert("L")
            return to_rgb(upright)
        except Exception as error:  # Pillow's decoders raise almost anything on damaged data
            raise InvalidImage("The picture is damaged and can't be decoded. Save it again and retry.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB without transparency, which is dropped, not composited.

    By way of RGBA where Pillow would warn that a palette's transparency gets lost; the colours are the same.
    """
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")
