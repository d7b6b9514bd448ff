"""The containers of image formats: segments, chunks, blocks, directories and boxes.

Each reader walks through a file once, counts its parts, and returns the first image without metadata. Decoders never
see the file itself: Pillow's parsers join and copy metadata in quadratic time and memory, before any limit applies.
"""

from minigpt4_serve.images.containers.bmp import read_bmp
from minigpt4_serve.images.containers.container import Container, damaged
from minigpt4_serve.images.containers.gif import read_gif
from minigpt4_serve.images.containers.heif import read_avif, read_heic
from minigpt4_serve.images.containers.jpeg import read_jpeg
from minigpt4_serve.images.containers.png import read_png
from minigpt4_serve.images.containers.tiff import read_tiff
from minigpt4_serve.images.containers.webp import read_webp

__all__ = [
    "Container",
    "damaged",
    "read_avif",
    "read_bmp",
    "read_gif",
    "read_heic",
    "read_jpeg",
    "read_png",
    "read_tiff",
    "read_webp",
]
