"""References to images, chosen by a language model → their checked bytes.

A reference is a path, an https address, a ``data:`` URL or bare base64. One that isn't allowed is refused before
anything is opened, with the same message whether the target exists or not. No message repeats a path or an address.
"""

import asyncio
import json
import os
import re
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minigpt4_serve.client.image_paths import find_file, open_beneath, strip_quotes
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import (
    EncodedImage,
    ImageLimits,
    decode_pixels,
    format_names,
    is_data_url,
    parse_data_url,
    run_image_work,
    to_portable,
    validate_image,
)
from minigpt4_serve.images.fetch import ImageFetcher
from minigpt4_serve.images.pasted import find_pasted_images

__all__ = ["HANDLE_IN_TEXT", "MAX_IMAGES", "PictureSources", "is_handle", "read_each", "split_references"]

MAX_IMAGES = 8
"""Most images of one question."""

HANDLE_IN_TEXT = re.compile(r"\bimage_\d+\b", re.IGNORECASE)
"""A handle within other text."""

_OUTSIDE = "This path is outside the folders whose pictures may be read; use another picture."
_HANDLE = re.compile(r"image_[1-9][0-9]{0,5}")
_HANDLES = re.compile(r"[\s\[\]\"',]*(?:image_\d+[\s\[\]\"',]*)+", re.IGNORECASE)


def is_handle(reference: str) -> bool:
    """Whether a reference is the name of an image in a conversation, such as ``image_1``."""
    return _HANDLE.fullmatch(reference) is not None


@dataclass(frozen=True)
class PictureSources:
    """The allowed sources of images.

    Attributes:
        folders: files in and below these folders may be read; none if empty.
        urls: True for any public https address, or the only hosts that are allowed. An address that a model makes up
            can carry text of the conversation out: name the hosts where that matters.
        limits: of one image.
        fetcher: replaced in tests; made from ``urls`` and ``limits`` if not given.
    """

    folders: tuple[Path, ...] = ()
    urls: bool | Sequence[str] = False
    limits: ImageLimits = field(default_factory=ImageLimits)
    fetcher: ImageFetcher | None = None

    def with_folders(self, folders: Sequence[Path]) -> "PictureSources":
        """A copy with more folders."""
        return replace(self, folders=(*self.folders, *folders))

    def lacks_file(self, reference: str) -> bool:
        """Whether a reference is a path, and no file in the allowed folders has it."""
        given = strip_quotes(reference)
        if ("://" in given and given[:5].lower() != "file:") or _as_data_url(given) is not None:
            return False
        found = find_file(self.folders, reference.strip())
        return found is None or not found[1].exists()

    async def read(self, reference: str) -> EncodedImage:
        """The image behind a reference.

        Raises:
            InvalidRequest: it isn't allowed, or there is no such image.
            InvalidImage, PayloadTooLarge: it can't be used.
        """
        given = strip_quotes(reference)
        if (url := _as_data_url(given)) is not None:
            return await run_image_work(lambda: self._checked(parse_data_url(url, self.limits)))
        is_file_url = given[:5].lower() == "file:"
        if not self.folders if is_file_url else "://" in given:
            fetched = await self._fetch(given)
            return await run_image_work(lambda: self._checked(validate_image(fetched, self.limits)))
        data = await asyncio.to_thread(self._read_file, reference.strip())
        return await run_image_work(lambda: self._checked(validate_image(data, self.limits)))

    @staticmethod
    def _checked(picture: EncodedImage) -> EncodedImage:
        """An image that can be decoded, in a format that every server supports; others are never sent to a server."""
        portable = to_portable(picture)  # decodes what it encodes again
        if portable is picture:
            decode_pixels(picture.data)
        return portable

    async def _fetch(self, url: str) -> bytes:
        if not url.lower().startswith("https://"):
            raise InvalidRequest("Addresses of pictures must begin with https://; files are named by their plain path.")
        if self.urls is False:
            raise InvalidRequest("Fetching pictures from addresses is not allowed here; use a picture that was given.")
        hosts = None if self.urls is True else frozenset(host.lower() for host in self.urls)
        fetcher = self.fetcher or ImageFetcher(self.limits.max_bytes, hosts=hosts)
        return await fetcher.fetch(url)

    def _read_file(self, reference: str) -> bytes:
        if not self.folders:
            raise InvalidRequest("Reading files is not allowed here; use a picture that was given.")
        found = find_file(self.folders, reference)
        if found is None:
            raise InvalidRequest(_OUTSIDE)
        try:
            with os.fdopen(open_beneath(*found), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise InvalidRequest(f"This is not a file. Give the path of a {format_names()}.")
                data = file.read(self.limits.max_bytes + 1)
        except OSError as error:
            raise InvalidRequest("There is no readable picture at this path; check the name.") from error
        if len(data) > self.limits.max_bytes:
            raise PayloadTooLarge(f"The picture's file has more than {self.limits.max_bytes / 2**20:.0f} MiB.")
        return data


def _as_data_url(given: str) -> str | None:
    """A reference that holds the image itself, as a ``data:`` URL; None for any other reference."""
    if is_data_url(given):
        return given
    pasted = _bare_base64(given)
    return None if pasted is None else f"data:;base64,{pasted}"


def _bare_base64(text: str) -> str | None:
    """Base64 of an image that is the whole text; None if the text is anything else."""
    found = next(find_pasted_images(text), None)
    return found.base64 if found is not None and (found.start, found.end) == (0, len(text)) else None


def split_references(written: Any) -> Any:
    """A list of references, if a model wrote it as one text: ``image_1``, ``image_1, image_2`` or a list in JSON."""
    if not isinstance(written, str):
        return written
    if _HANDLES.fullmatch(written):
        return HANDLE_IN_TEXT.findall(written)
    if written.lstrip().startswith("["):
        try:
            listed = json.loads(written)
        except (ValueError, RecursionError):
            return [written]
        return listed if isinstance(listed, list) else [written]
    return [written]


async def read_each(
    references: Sequence[str], read: Callable[[str], Awaitable[EncodedImage]], *, limit: int = MAX_IMAGES
) -> list[EncodedImage]:
    """The images behind several references, in order; the message of an error names the number of its image.

    Raises:
        InvalidRequest: more than ``limit``.
        MiniGPT4Error: as ``read``.
    """
    if len(references) > limit:
        raise InvalidRequest(f"At most {limit} pictures fit into one question; ask about fewer at a time.")
    pictures = []
    for number, reference in enumerate(references, start=1):
        try:
            pictures.append(await read(reference))
        except MiniGPT4Error as error:
            if len(references) > 1:
                error.reword(f"Picture {number} of {len(references)}: {error.message}")
            raise
    return pictures
