"""Images on their way into a prompt."""

import threading

import pytest
from drawing import draw, encode
from minigpt4_bots.core import prompt_builder
from minigpt4_bots.core.question import Attachment

from minigpt4_serve.images import EncodedImage, ImageLimits, find_format, validate_image


@pytest.mark.parametrize(("kind", "sent"), [("PNG", "PNG"), ("WEBP", "WEBP"), ("BMP", "PNG"), ("TIFF", "PNG")])
async def test_images_are_checked_beside_the_event_loop(kind: str, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def check(data: bytes, limits: ImageLimits) -> EncodedImage:
        threads.append(threading.current_thread().name)
        return validate_image(data, limits)

    async def load(max_bytes: int) -> bytes:
        return encode(draw(), kind)

    monkeypatch.setattr(prompt_builder, "validate_image", check)
    (image,) = await prompt_builder._ImageLoader(4, 10**6).load([Attachment(load, 100)])
    found = find_format(image.data)
    assert found is not None
    assert found.name == sent
    assert len(threads) == 1
    assert threads[0].startswith("minigpt4-images")
