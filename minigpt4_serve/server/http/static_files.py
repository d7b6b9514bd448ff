"""Files that are read once and served from memory, compressed for clients that accept it."""

import gzip
import hashlib
import mimetypes
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

__all__ = ["StaticFile", "add_files", "keep_in_memory", "make_file"]

_SLICE = 64 * 2**10
_COMPRESSED = ("text/", "application/")
_HEADERS = {
    # Browsers revalidate a file before each use: an update never mixes files of two versions for longer than a load.
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-dns-prefetch-control": "off",
    "vary": "accept-encoding",
}


@dataclass(frozen=True)
class StaticFile:
    """A file as it is served.

    Attributes:
        data, compressed: its bytes, and the same with gzip; None where that saves nothing.
        etag: of ``data``, without quotes.
    """

    media_type: str
    data: bytes
    compressed: bytes | None
    etag: str
    headers: dict[str, str]


def make_file(name: str, data: bytes, headers: Mapping[str, str] | None = None) -> StaticFile:
    """The file of that name; ``headers`` are added to those of all files."""
    # Windows' registry may say otherwise; browsers refuse modules of any other type.
    guessed = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    media_type = guessed or "application/octet-stream"
    compressed = gzip.compress(data, mtime=0) if media_type.startswith(_COMPRESSED) else None
    if compressed is not None and len(compressed) >= len(data):
        compressed = None
    return StaticFile(
        media_type, data, compressed, hashlib.sha256(data).hexdigest()[:32], {**_HEADERS, **(headers or {})}
    )


def add_files(app: FastAPI, route: str, files: Mapping[str, StaticFile]) -> None:
    """Serve files at a route.

    Args:
        route: a path, with or without parameters.
        files: by their whole path on the server.
    """

    async def answer(request: Request) -> Response:
        file = files.get(request.scope["path"])
        if file is None:
            raise HTTPException(404)
        return _respond(request, file)

    app.add_api_route(route, answer, methods=["GET", "HEAD"], include_in_schema=False)


def keep_in_memory(app: FastAPI, path: str, names: Collection[str]) -> None:
    """Serve some files of the static files mounted at ``path`` from memory, and no others.

    They need no key, and from the disk a file of a megabyte takes dozens of turns of a thread.
    """
    (mount,) = [route for route in app.router.routes if isinstance(route, Mount) and route.path == path]
    assert isinstance(mount.app, StaticFiles)
    assert mount.app.directory is not None
    folder = Path(mount.app.directory)
    app.router.routes.remove(mount)
    add_files(
        app, f"{path}/{{file}}", {f"{path}/{name}": make_file(name, (folder / name).read_bytes()) for name in names}
    )


def _respond(request: Request, file: StaticFile) -> Response:
    zipped = file.compressed is not None and "gzip" in request.headers.get("accept-encoding", "")
    etag = f'"{file.etag}{"-gzip" if zipped else ""}"'
    headers = {**file.headers, "etag": etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known:
        return Response(status_code=304, headers=headers)
    if zipped:
        headers["content-encoding"] = "gzip"
    data = file.compressed if zipped and file.compressed is not None else file.data
    if len(data) <= _SLICE:
        return Response(data, media_type=file.media_type, headers=headers)
    headers["content-length"] = str(len(data))
    return StreamingResponse(_slices(data), media_type=file.media_type, headers=headers)


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    """Parts of a file: a connection whose client doesn't read holds only one of them."""
    for begin in range(0, len(data), _SLICE):
        yield data[begin : begin + _SLICE]
