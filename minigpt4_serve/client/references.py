"""A reference to a picture, chosen by a language model → its checked bytes. Knows folders and rules, no server.

A reference is a path, an https address or a ``data:`` URL. What is not allowed is refused before anything is opened, in
the same words whether it exists or not. No message repeats a path or an address.
"""

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import EncodedImage, ImageLimits, decode_image, parse_data_url, validate_image
from minigpt4_serve.images.fetch import ImageFetcher

__all__ = ["MAX_IMAGES", "PictureSources", "is_handle", "read_each"]

MAX_IMAGES = 8
"""Pictures of one question."""

_OUTSIDE = "This path is outside the folders whose pictures may be read; use another picture."
_HANDLE = re.compile(r"image_[1-9][0-9]{0,5}")


def is_handle(reference: str) -> bool:
    """Is it the name of a picture in a conversation, such as ``image_1``?"""
    return _HANDLE.fullmatch(reference) is not None


@dataclass(frozen=True)
class PictureSources:
    """Where pictures may come from.

    Attributes:
        folders: files in and below these folders may be read; none if empty.
        urls: True for any public https address, or the only hosts that are allowed. An address that a model makes up
            can carry words of the conversation out: name the hosts where that matters.
        limits: of one picture.
        fetcher: replaced in tests; made from ``urls`` and ``limits`` if not given.
    """

    folders: tuple[Path, ...] = ()
    urls: bool | Sequence[str] = False
    limits: ImageLimits = field(default_factory=ImageLimits)
    fetcher: ImageFetcher | None = None

    def with_folders(self, folders: Sequence[Path]) -> "PictureSources":
        """The same with more folders."""
        return replace(self, folders=(*self.folders, *folders))

    async def read(self, reference: str) -> EncodedImage:
        """The picture behind a reference.

        Raises:
            InvalidRequest: it may not be read, or there is no such picture.
            InvalidImage, PayloadTooLarge: it can't be used.
        """
        reference = reference.strip()
        if reference[:5].lower() == "data:":
            return await asyncio.to_thread(self._checked, lambda: parse_data_url(reference, self.limits))
        if "://" in reference or reference[:5].lower() == "file:":
            fetched = await self._fetch(reference)
            return await asyncio.to_thread(self._checked, lambda: validate_image(fetched, self.limits))
        return await asyncio.to_thread(self._checked, lambda: validate_image(self._read_file(reference), self.limits))

    def _checked(self, read: Callable[[], EncodedImage]) -> EncodedImage:
        """A picture that can be decoded: no server is sent another."""
        picture = read()
        decode_image(picture.data)
        return picture

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
                    raise InvalidRequest("This is not a file. Give the path of a PNG, JPEG, WEBP, GIF or BMP.")
                data = file.read(self.limits.max_bytes + 1)
        except OSError as error:
            raise InvalidRequest("There is no readable picture at this path; check the name.") from error
        if len(data) > self.limits.max_bytes:
            raise PayloadTooLarge(f"The picture's file has more than {self.limits.max_bytes / 2**20:.0f} MiB.")
        return data

    def _allowed(self, reference: str) -> Path:
        """The real path, links resolved, if it lies in an allowed folder. Relative paths are tried in each folder."""
        if not self.folders:
            raise InvalidRequest("Reading files is not allowed here; use a picture that was given.")
        if reference.replace("\\", "/").startswith("//"):  # Windows would ask that host, with the user's password
            raise InvalidRequest(_OUTSIDE)
        inside: list[tuple[bool, Path]] = []
        for folder in self.folders:
            try:
                root = folder.expanduser().resolve()
                path = (root / reference).resolve()
                there = path.exists()
            except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links, far too long
                continue
            if path.is_relative_to(root):
                inside.append((there, path))
        if not inside:
            raise InvalidRequest(_OUTSIDE)
        return next((path for there, path in inside if there), inside[0][1])


async def read_each(
    references: Sequence[str], read: Callable[[str], Awaitable[EncodedImage]], *, limit: int = MAX_IMAGES
) -> list[EncodedImage]:
    """The pictures behind several references, in order; an error says which one of several it is about.

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
