"""Images for tests."""

import io

from PIL import Image, ImageDraw


def draw(color: str = "red", size: tuple[int, int] = (64, 48), background: str = "white") -> Image.Image:
    """An image of a disc in its center."""
    image = Image.new("RGB", size, background)
    width, height = size
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=color)
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
