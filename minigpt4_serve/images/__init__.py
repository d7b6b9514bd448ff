"""Encoded images: formats, validation, decoding, ``data:`` URLs, downloads. Imports no torch."""

from minigpt4_serve.images.data_urls import image_url_part, parse_data_url, to_data_url
from minigpt4_serve.images.decoding import decode_image, to_rgb
from minigpt4_serve.images.formats import IMAGE_FORMATS, IMAGE_SUFFIXES, ImageFormat, find_format
from minigpt4_serve.images.in_text import ImageInText, find_images, standard_base64
from minigpt4_serve.images.validation import EncodedImage, ImageLimits, validate_image

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "EncodedImage",
    "ImageFormat",
    "ImageInText",
    "ImageLimits",
    "decode_image",
    "find_format",
    "find_images",
    "image_url_part",
    "parse_data_url",
    "standard_base64",
    "to_data_url",
    "to_rgb",
    "validate_image",
]
