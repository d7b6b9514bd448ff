"""Preprocessing. tests/tools/test_parity.py compares pixels with the original's, bit by bit."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from minigpt4_serve.images import DecodedImage
from minigpt4_serve.model import MiniGPT4ImageProcessor

SIDE = 28
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int) -> Image.Image:
    """Random black and white pixels: bicubic overshoots everywhere, so the order of passes matters."""
    bits = numpy.random.default_rng(7).random((height, width, 3)) > 0.5
    return Image.fromarray(bits.astype(numpy.uint8) * 255)


def levels(pixels: torch.Tensor) -> numpy.ndarray:
    """Normalized pixels converted back to integer levels ``[H, W, 3]``."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    return (pixels * std + mean).mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "tall"),
    [
        ((40, 53), True), ((40, 52), False), ((20, 29), True), ((20, 27), False), ((300, 573), True),
        ((300, 572), False), ((60, 60), False), ((60, 20), False), ((5, 200), True), ((900, 9), False),
    ],
)  # fmt: skip
def test_the_order_of_passes_does_not_depend_on_pillow(size: tuple[int, int], tall: bool) -> None:
    image = noise(*size)
    bicubic = Image.Resampling.BICUBIC
    vertical = image.resize((size[0], SIDE), bicubic).resize((SIDE, SIDE), bicubic)
    horizontal = image.resize((SIDE, size[1]), bicubic).resize((SIDE, SIDE), bicubic)
    assert not numpy.array_equal(numpy.array(vertical), numpy.array(horizontal))
    ours = levels(MiniGPT4ImageProcessor(SIDE).to_tensor(image))
    assert numpy.array_equal(ours, numpy.array(vertical if tall else horizontal))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = noise(31, 17).convert("L").convert(mode)
    pixels = MiniGPT4ImageProcessor(SIDE).to_tensor(image)
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, MiniGPT4ImageProcessor(SIDE).to_tensor(image.convert("RGB")))


def test_transparency_is_dropped_and_exact_squares_are_kept() -> None:
    image = noise(SIDE, SIDE)
    clear = image.convert("RGBA")
    clear.putalpha(0)
    assert numpy.array_equal(levels(MiniGPT4ImageProcessor(SIDE).to_tensor(clear)), numpy.array(image))


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    image = noise(SIDE, SIDE).convert("P")
    image.save(tmp_path / "clear.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "clear.png") as clear:
        assert isinstance(clear.info["transparency"], bytes)
        pixels = MiniGPT4ImageProcessor(SIDE).to_tensor(clear)
    assert numpy.array_equal(levels(pixels), numpy.array(image.convert("RGB")))


@pytest.mark.parametrize("size", [(1500, 1200), (1200, 1500), (40, 90_000), (90_000, 40)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_give_the_pixels_of_the_whole(size: tuple[int, int], orientation: int) -> None:
    stored = noise(*size)
    decoded = DecodedImage(stored, orientation)
    upright = decoded.crop((0, 0, *decoded.size))
    width, height = upright.size
    tall = height - SIDE > 2 * max(width - SIDE, 0)
    bicubic = Image.Resampling.BICUBIC
    whole = upright.resize((width, SIDE) if tall else (SIDE, height), bicubic).resize((SIDE, SIDE), bicubic)
    assert numpy.array_equal(levels(MiniGPT4ImageProcessor(SIDE).to_tensor(decoded)), numpy.array(whole))
