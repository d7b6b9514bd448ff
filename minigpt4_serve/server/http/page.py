"""The chat page as static files: ``/``, what it loads from ``/page/``, and ``/preview``, where generated websites run.

The files hold no secrets and need no key; the page talks to the API like any other client. Its policy lets the browser
load scripts, styles and images from this server only, runs no inline scripts, and forbids HTML sinks.
"""

import gzip
import hashlib
import mimetypes
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

__all__ = ["PageFile", "add_page", "keep_in_memory", "read_page"]

_FOLDER = Path(__file__).parents[2] / "page"
_MODULES = "<!-- modules -->"
_SLICE = 64 * 2**10
_COMPRESSED = ("text/", "application/")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_PREVIEW_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    # Each use asks whether the file has changed: an update never mixes files of two versions for longer than a load.
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-dns-prefetch-control": "off",
    "vary": "accept-encoding",
}
_PAGE_HEADERS = {
    "content-security-policy": _PAGE_POLICY,
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
}
_PREVIEW_HEADERS = {
    "content-security-policy": _PREVIEW_POLICY,
    "x-frame-options": "SAMEORIGIN",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


@dataclass(frozen=True)
class PageFile:
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


def add_page(app: FastAPI) -> frozenset[str]:
    """Add the routes of the page to an application and return their paths, which need no key."""
    files = read_page()

    def add(path: str, path_of: Callable[[Request], str]) -> None:
        async def answer(request: Request) -> Response:
            file = files.get(path_of(request))
            if file is None:
                raise HTTPException(404)
            return _respond(request, file)

        app.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)

    add("/", lambda _: "/")
    add("/preview", lambda _: "/preview")
    add("/page/{file:path}", lambda request: f"/page/{request.path_params['file']}")
    return frozenset(files)


def keep_in_memory(app: FastAPI, path: str, names: Collection[str]) -> None:
    """Serve some files of the static files at ``path`` from memory, and no others.

    Anyone may ask for them, and from the disk a file of a megabyte takes dozens of turns of a thread.
    """
    (mount,) = [route for route in app.router.routes if isinstance(route, Mount) and route.path == path]
    assert isinstance(mount.app, StaticFiles)
    assert mount.app.directory is not None
    folder = Path(mount.app.directory)
    files = {name: _make_file(name, (folder / name).read_bytes(), {}) for name in names}
    app.router.routes.remove(mount)

    async def answer(request: Request) -> Response:
        file = files.get(request.path_params["file"])
        if file is None:
            raise HTTPException(404)
        return _respond(request, file)

    app.add_api_route(f"{path}/{{file}}", answer, methods=["GET", "HEAD"], include_in_schema=False)


@cache
def read_page() -> dict[str, PageFile]:
    """All files of the page by their path on the server; read once for each process."""
    files = {}
    modules = []
    for file in sorted(_FOLDER.rglob("*")):
        if file.is_file() and file.suffix != ".html":
            name = file.relative_to(_FOLDER).as_posix()
            files[f"/page/{name}"] = _make_file(name, file.read_bytes(), {})
            if file.suffix == ".js":
                modules.append(f'<link rel="modulepreload" href="page/{name}">')
    index = (_FOLDER / "index.html").read_text(encoding="utf-8").replace(_MODULES, "\n".join(modules))
    files["/"] = _make_file("index.html", index.encode(), _PAGE_HEADERS)
    files["/preview"] = _make_file("preview.html", (_FOLDER / "preview.html").read_bytes(), _PREVIEW_HEADERS)
    return files


def _make_file(name: str, data: bytes, headers: dict[str, str]) -> PageFile:
    # Windows' registry may say otherwise; browsers refuse modules of any other type.
    guessed = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    media_type = guessed or "application/octet-stream"
    compressed = gzip.compress(data, mtime=0) if media_type.startswith(_COMPRESSED) else None
    if compressed is not None and len(compressed) >= len(data):
        compressed = None
    return PageFile(media_type, data, compressed, hashlib.sha256(data).hexdigest()[:32], {**_HEADERS, **headers})


def _respond(request: Request, file: PageFile) -> Response:
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
