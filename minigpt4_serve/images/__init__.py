"""Encoded images: formats, validation, decoding, ``data:`` URLs, downloads. Imports no torch."""

from minigpt4_serve.images.data_urls import decode_base64, image_url_part, is_data_url, parse_data_url, to_data_url
from minigpt4_serve.images.decoding import DecodedImage, decode_image, decode_pixels, to_portable
from minigpt4_serve.images.formats import IMAGE_FORMATS, IMAGE_SUFFIXES, ImageFormat, find_format, format_names
from minigpt4_serve.images.pool import run_image_work
from minigpt4_serve.images.validation import EncodedImage, ImageLimits, validate_image

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "DecodedImage",
    "EncodedImage",
    "ImageFormat",
    "ImageLimits",
    "decode_base64",
    "decode_image",
    "decode_pixels",
    "find_format",
    "format_names",
    "image_url_part",
    "is_data_url",
    "parse_data_url",
    "run_image_work",
    "to_data_url",
    "to_portable",
    "validate_image",
]
