"""Pictures that tests draw."""

import io

from PIL import Image, ImageDraw


def draw(color: str = "red", size: tuple[int, int] = (64, 48), background: str = "white") -> Image.Image:
    """A disc in the middle."""
    image = Image.new("RGB", size, background)
    width, height = size
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=color)
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
