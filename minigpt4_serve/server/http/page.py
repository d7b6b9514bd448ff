"""The chat page as static files: ``/``, what it loads from ``/page/``, and ``/preview``, where generated websites run.

The files hold no secrets and need no key; the page talks to the API like any other client. Its policy lets the browser
load scripts, styles and images from this server only, runs no inline scripts, and forbids HTML sinks.
"""

from functools import cache
from pathlib import Path

from fastapi import FastAPI

from minigpt4_serve.server.http.static_files import StaticFile, add_files, make_file

__all__ = ["add_page", "read_page"]

_FOLDER = Path(__file__).parents[2] / "page"
_MODULES = "<!-- modules -->"

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_PREVIEW_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
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


def add_page(app: FastAPI) -> frozenset[str]:
    """Add the routes of the page to an application and return their paths, which need no key."""
    files = read_page()
    for path in ("/", "/preview", "/page/{file:path}"):
        add_files(app, path, files)
    return frozenset(files)


@cache
def read_page() -> dict[str, StaticFile]:
    """All files of the page by their path on the server; read once for each process."""
    files: dict[str, StaticFile] = {}
    modules = []
    for file in sorted(_FOLDER.rglob("*")):
        if file.is_file() and file.suffix != ".html":
            name = file.relative_to(_FOLDER).as_posix()
            files[f"/page/{name}"] = make_file(name, file.read_bytes())
            if file.suffix == ".js":
                modules.append(f'<link rel="modulepreload" href="page/{name}">')
    index = (_FOLDER / "index.html").read_text(encoding="utf-8").replace(_MODULES, "\n".join(modules))
    files["/"] = make_file("index.html", index.encode(), _PAGE_HEADERS)
    files["/preview"] = make_file("preview.html", (_FOLDER / "preview.html").read_bytes(), _PREVIEW_HEADERS)
    return files
