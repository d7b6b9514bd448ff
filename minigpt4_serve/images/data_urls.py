"""Images as ``data:`` URLs, the way OpenAI messages carry them, and base64 text as many programs write it."""

import base64
import binascii
from typing import TYPE_CHECKING
from urllib.parse import unquote

from minigpt4_serve.errors import InvalidImage, InvalidRequest
from minigpt4_serve.images.decoding import encode_portable
from minigpt4_serve.images.validation import EncodedImage, ImageLimits, require_format, validate_image

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionContentPartImageParam

__all__ = ["decode_base64", "image_url_part", "is_data_url", "parse_data_url", "to_data_url"]

_MAX_HEADER = 1024
# What percent-encoding makes of base64's characters and of blanks. Decoding any escape takes a second per megabyte.
_ESCAPES = [(escape, bytes.fromhex(escape[1:].decode())) for escape in b"%2B %2F %3D %2D %5F %0A %0D %20 %09".split()]
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def is_data_url(text: str) -> bool:
    """Whether ``text`` is a ``data:`` URL, after any leading blanks."""
    return text[:_MAX_HEADER].lstrip()[:5].lower() == "data:"


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text: in either alphabet, with or without padding, line breaks or percent-encoding.

    Raises:
        ValueError: another character, or an impossible length.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)  # as most programs write it: no copies of megabytes
    except ValueError:
        pass
    encoded = text.encode("ascii")
    if b"%" in encoded:
        for escape, character in _ESCAPES:
            encoded = encoded.replace(escape, character).replace(escape.lower(), character)
    compact = encoded.translate(_URL_SAFE, b" \t\r\n\f\v").rstrip(b"=")
    return binascii.a2b_base64(compact + b"=" * (-len(compact) % 4), strict_mode=True)


def parse_data_url(url: str, limits: ImageLimits, *, param: str | None = None) -> EncodedImage:
    """The image in a ``data:image/…;base64,…`` URL. The declared media type is ignored; the signature determines it.

    The header may be percent-encoded, and ``base64`` may be anywhere in it; parameters may be quoted.

    Raises:
        InvalidRequest: not a base64 ``data:`` URL.
        PayloadTooLarge, InvalidImage: as ``validate_image``.
    """
    header, comma, payload = _split(url)
    if not is_data_url(header) or not comma:
        raise InvalidRequest(
            "Pictures must be sent as data: URLs (data:image/png;base64,…); addresses are not fetched here.",
            param=param,
        )
    _, _, declared = unquote(header[:_MAX_HEADER]).partition(":")
    if not any(parameter.strip().lower() == "base64" for parameter in declared.split(";")):
        raise InvalidRequest("The data: URL must be base64-encoded (data:image/png;base64,…).", param=param)
    try:
        data = decode_base64(payload)
    except ValueError:
        raise InvalidImage("The picture's base64 text is damaged.", param=param) from None
    return validate_image(data, limits, param=param)


def _split(url: str) -> tuple[str, str, str]:
    """Header, comma and payload of a ``data:`` URL. A comma between quotes belongs to the header."""
    quoted = False
    for at, letter in enumerate(url[:_MAX_HEADER]):
        if letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            return url[:at], ",", url[at + 1 :]
    return url.partition(",")


def to_data_url(data: bytes) -> str:
    """``data`` as a ``data:`` URL with its actual media type.

    Raises:
        InvalidImage: unsupported format.
    """
    found = require_format(data)
    return f"data:{found.mime_type};base64,{base64.b64encode(data).decode()}"


def image_url_part(data: bytes) -> "ChatCompletionContentPartImageParam":
    """An encoded image as a part of an OpenAI message, in a format that every server supports.

    Raises:
        InvalidImage: as ``to_data_url`` and ``encode_portable``.
    """
    return {"type": "image_url", "image_url": {"url": to_data_url(encode_portable(data))}}
