"""Overlap of boxes, and the accuracy of RefCOCO's referring expressions.

Source: the original's ``eval_ref.py`` and ``computeIoU``, which count pixels inclusively: widths have one pixel more
than the difference of their edges.
"""

import re
from collections.abc import Sequence

__all__ = ["iou", "is_located", "read_box"]

_BOX = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")
_INTEGER = re.compile(r"\d+")
_THRESHOLD = 0.5

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def read_box(answer: str, width: float, height: float) -> Corners | None:
    """The box of an answer in v2's notation, whose integers are percent, in pixels of an image of this size.

    None unless the answer has exactly four integers, those of its box: the original gives no point for several boxes.
    Spaces and ``<unk>`` are ignored, as in the original.
    """
    text = answer.replace("<unk>", "").replace(" ", "")
    found = _BOX.search(text)
    if found is None or len(_INTEGER.findall(text)) > len(found.groups()):
        return None
    left, top, right, bottom = (int(number) / 100 for number in found.groups())
    return left * width, top * height, right * width, bottom * height


def iou(first: Corners, second: Corners) -> float:
    """Intersection over union, 0 … 1, of two boxes in pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    shared = max(0.0, width) * max(0.0, height)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def is_located(answer: str, bbox: Sequence[float], width: float, height: float) -> bool:
    """Whether the answer's box overlaps the true one with an IoU of at least 0.5.

    Args:
        bbox: left, top, width, height in pixels, as COCO writes boxes.
    """
    given = read_box(answer, width, height)
    if given is None:
        return False
    left, top, box_width, box_height = bbox
    return iou(given, (left, top, left + box_width, top + box_height)) >= _THRESHOLD


def _area(box: Corners) -> float:
    return max(0.0, box[2] - box[0] + 1) * max(0.0, box[3] - box[1] + 1)
