"""Small copies of images for HTML pages, with the boxes of questions that have one."""

import io

from PIL import Image

from minigpt4_serve.boxes import Box, Grounding, draw_boxes, parse_groundings
from minigpt4_serve.errors import InvalidImage
from minigpt4_serve.evaluation.questions import Question
from minigpt4_serve.images import decode_image, to_data_url

__all__ = ["preview_url"]

_MAX_SIDE = 512


def preview_url(question: Question, answer: str = "") -> str:
    """The question's image as a ``data:`` URL, at most 512 pixels a side; empty if it can't be decoded.

    Boxes of the answer, and the true one, are drawn if the question has a true box.
    """
    try:
        image = decode_image(question.image.read_bytes())
    except (OSError, InvalidImage):
        return ""
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    if isinstance(question.truth, dict) and "bbox" in question.truth:
        image = draw_boxes(image, [Grounding("right", (_true_box(question),)), *_given_boxes(answer)])
        image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return to_data_url(file.getvalue())


def _true_box(question: Question) -> Box:
    left, top, width, height = question.truth["bbox"]
    x = 100 / question.truth["width"]
    y = 100 / question.truth["height"]
    return Box.of(int(left * x), int(top * y), int((left + width) * x), int((top + height) * y))


def _given_boxes(answer: str) -> list[Grounding]:
    return [Grounding(found.phrase or "answer", found.boxes) for found in parse_groundings(answer)]
