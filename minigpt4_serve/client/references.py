"""References to images, chosen by a language model → their checked bytes.

A reference is a path, an https address or a ``data:`` URL. One that isn't allowed is refused before anything is opened,
with the same message whether the target exists or not. No message repeats a path or an address.
"""

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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

__all__ = ["MAX_IMAGES", "PictureSources", "is_handle", "read_each"]

MAX_IMAGES = 8
"""Most images of one question."""

_OUTSIDE = "This path is outside the folders whose pictures may be read; use another picture."
_HANDLE = re.compile(r"image_[1-9][0-9]{0,5}")


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

    async def read(self, reference: str) -> EncodedImage:
        """The image behind a reference.

        Raises:
            InvalidRequest: it isn't allowed, or there is no such image.
            InvalidImage, PayloadTooLarge: it can't be used.
        """
        reference = reference.strip()
        if is_data_url(reference):
            return await run_image_work(lambda: self._checked(parse_data_url(reference, self.limits)))
        if "://" in reference or reference[:5].lower() == "file:":
            fetched = await self._fetch(reference)
            return await run_image_work(lambda: self._checked(validate_image(fetched, self.limits)))
        data = await asyncio.to_thread(self._read_file, reference)
        return await run_image_work(lambda: self._checked(validate_image(data, self.limits)))

    @staticmethod
    def _checked(picture: EncodedImage) -> EncodedImage:
        """An image that can be decoded, in a format that every server supports; others are never sent to a server."""
        decode_pixels(picture.data)
        return to_portable(picture)

    async def _fetch(self, url: str) -> bytes:
        if not url.lower().startswith("https://"):
            raise InvalidRequest("Addresses of pictures must begin with https://; files are named by their plain path.")
        if self.urls is False:
            raise InvalidRequest("Fetching pictures from addresses is not allowed here; use a picture that was given.")
        hosts = None if self.urls is True else frozenset(host.lower() for host in self.urls)
        fetcher = self.fetcher or ImageFetcher(self.limits.max_bytes, hosts=hosts)
        return await fetcher.fetch(url)

    def _read_file(self, reference: str) -> bytes:
        path = self._allowed(reference)
        # A pipe must not block, and a link that appeared after the check must not be followed.
        flags = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
        try:
            with os.fdopen(os.open(path, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise InvalidRequest(f"This is not a file. Give the path of a {format_names()}.")
                data = file.read(self.limits.max_bytes + 1)
        except OSError as error:
            raise InvalidRequest("There is no readable picture at this path; check the name.") from error
        if len(data) > self.limits.max_bytes:
            raise PayloadTooLarge(f"The picture's file has more than {self.limits.max_bytes / 2**20:.0f} MiB.")
        return data

    def _allowed(self, reference: str) -> Path:
        """The real path, with links resolved. Relative paths are tried in each allowed folder.

        Raises:
            InvalidRequest: it is outside of them.
        """
        if not self.folders:
            raise InvalidRequest("Reading files is not allowed here; use a picture that was given.")
        if reference.replace("\\", "/").startswith("//"):  # Windows would log in to that host as the user
            raise InvalidRequest(_OUTSIDE)
        candidates: list[Path] = []
        existing: list[Path] = []
        for folder in self.folders:
            try:
                root = folder.expanduser().resolve()
                path = (root / reference).resolve()
                exists = path.exists()
            except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links, far too long
                continue
            if path.is_relative_to(root):
                candidates.append(path)
                if exists:
                    existing.append(path)
        if not candidates:
            raise InvalidRequest(_OUTSIDE)
        return (existing or candidates)[0]


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
