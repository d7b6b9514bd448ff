"""Decodes images that ``validation`` has accepted."""

from PIL import Image, ImageOps

from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.images.validation import ignored_pillow_warnings, open_image

__all__ = ["decode_image", "to_rgb"]


def decode_image(data: bytes) -> Image.Image:
    """An image's pixels as RGB, in the orientation of its EXIF data; the first frame of an animation.

    Transparency is dropped, not composited, as in the model's training. 16-bit grayscale is scaled to 8 bits; Pillow's
    conversion would clip it.

    Raises:
        InvalidImage: the data is damaged.
    """
    with open_image(data) as image, ignored_pillow_warnings():
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = upright.convert("I").point(lambda value: value / 256).convert("L")
            return to_rgb(upright)
        except Exception as error:  # Pillow's decoders raise many kinds of exceptions for damaged data
            raise InvalidImage("The picture is damaged and can't be decoded. Save it again and retry.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB and drop transparency, without compositing.

    Palettes with transparency are converted to RGBA first, which gives the same colors without a warning of Pillow's.
    """
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")
