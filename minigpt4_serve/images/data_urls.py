"""Images as ``data:`` URLs, the way OpenAI messages carry them."""

import base64
import binascii
from typing import TYPE_CHECKING

from minigpt4_serve.errors import InvalidImage, InvalidRequest, PayloadTooLarge
from minigpt4_serve.images.formats import find_format
from minigpt4_serve.images.validation import EncodedImage, ImageLimits, unsupported_format, validate_image

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionContentPartImageParam

__all__ = ["image_url_part", "parse_data_url", "to_data_url"]


def parse_data_url(url: str, limits: ImageLimits, *, param: str | None = None) -> EncodedImage:
    """The image in a ``data:image/…;base64,…`` URL. The declared media type is ignored; the signature determines it.

    Raises:
        InvalidRequest: not a base64 ``data:`` URL.
        PayloadTooLarge, InvalidImage: as ``validate_image``.
    """
    header, comma, payload = url.partition(",")
    if not header.lower().startswith("data:") or not comma:
        raise InvalidRequest(
            "Pictures must be sent as data: URLs (data:image/png;base64,…); addresses are not fetched here.",
            param=param,
        )
    if not header.lower().endswith(";base64"):
        raise InvalidRequest("The data: URL must be base64-encoded (data:image/png;base64,…).", param=param)
    if len(payload) * 3 // 4 > limits.max_bytes + 2:
        raise PayloadTooLarge(f"The picture has more than {limits.max_bytes / 2**20:.1f} MiB.", param=param)
    try:
        data = base64.b64decode(payload.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("The picture's base64 text is damaged.", param=param) from None
    return validate_image(data, limits, param=param)


def to_data_url(data: bytes) -> str:
    """``data`` as a ``data:`` URL with its actual media type.

    Raises:
        InvalidImage: unsupported format.
    """
    found = find_format(data)
    if found is None:
        raise unsupported_format()
    return f"data:{found.mime_type};base64,{base64.b64encode(data).decode()}"


def image_url_part(data: bytes) -> "ChatCompletionContentPartImageParam":
    """An encoded image as a part of an OpenAI message, with its actual media type.

    Raises:
        InvalidImage: as ``to_data_url``.
    """
    return {"type": "image_url", "image_url": {"url": to_data_url(data)}}
