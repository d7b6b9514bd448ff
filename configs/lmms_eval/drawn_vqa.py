"""Functions of the task ``drawn_vqa.yaml``."""

from typing import Any

from PIL import Image


def read_image(document: dict[str, Any]) -> list[Image.Image]:
    """The images of one question."""
    with Image.open(document["image"]) as image:
        return [image.convert("RGB")]


def score(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right answer, whatever its case and final period, 0 for another one."""
    return {"exact": float(_plain(results[0]) == _plain(document["answer"]))}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
