"""The files of the page over HTTP: headers, caching, and what is open without a key. No browser."""

import copy
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from page_serving import run_app
from starlette.routing import Route

from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.page import read_page
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

FOLDER = Path(__file__).parents[2] / "minigpt4_serve" / "page"
MODULES = sorted(FOLDER.glob("*.js"))


@pytest.fixture(scope="module")
def client(tiny_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_url) as client:
        yield client


def test_the_policy_of_the_page_is_strict(client: httpx.Client) -> None:
    response = client.get("/")
    policy = _directives(response)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data: blob:"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script(?! type=\"module\" src=)|\sstyle=|\son\w+=", response.text)


def test_the_policy_of_the_preview_allows_inline_code_only(client: httpx.Client) -> None:
    policy = _directives(client.get("/preview"))
    assert policy["sandbox"] == "allow-scripts"
    assert policy["default-src"] == "'none'"
    assert "connect-src" not in policy
    assert policy["script-src"] == "'unsafe-inline'"
    assert policy["frame-ancestors"] == "'self'"


@pytest.mark.parametrize("path", ["/", "/preview", "/page/main.js", "/page/style.css", "/page/examples/pond.png"])
def test_files_are_cached_until_they_change(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    again = client.get(path, headers={"if-none-match": f'"other", W/{response.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers or path.startswith("/page/")
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert plain.content == response.content == read_page()[path].data
    assert client.head(path).status_code == 200
    assert client.post(path).status_code == 405


def test_texts_travel_compressed(client: httpx.Client) -> None:
    with client.stream("GET", "/page/main.js") as response:
        raw = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in response.headers["vary"]
    assert gzip.decompress(raw) == (FOLDER / "main.js").read_bytes()
    assert "content-encoding" not in client.get("/page/icon.png").headers


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/index.html", "/page/../settings.py", "/page/%2e%2e/settings.py"]
)
def test_no_other_file_is_served(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "invalid_request_error"


def test_every_module_is_loaded_at_once(client: httpx.Client) -> None:
    index = client.get("/").text
    assert re.findall(r'<link rel="modulepreload" href="page/(\S+)">', index) == [module.name for module in MODULES]
    for module in MODULES:
        assert client.get(f"/page/{module.name}").headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_modules_use_no_html_sinks(module: Path) -> None:
    code = module.read_text(encoding="utf-8")
    sinks = r"innerHTML|insertAdjacentHTML|srcdoc|document\.write|DOMParser|\beval\b|new Function|setHTML|javascript:"
    assert re.findall(sinks, code) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", code) == []


def test_with_keys_the_page_probes_and_api_document_are_open(tiny_service: ChatService, tmp_path: Path) -> None:
    open_paths = {"/health", "/ready", "/docs", "/openapi.json", *read_page()}
    app = _keyed_app(tiny_service, tmp_path, page=True)
    paths = {route.path for route in app.routes if isinstance(route, Route)} | open_paths
    with run_app(app) as url:
        found = {path for path in paths if httpx.get(url.rstrip("/") + path).status_code == 200}
        assert found == open_paths
        assert httpx.post(url).status_code == 401
        assert httpx.get(f"{url}page/none.js").status_code == 401


def test_the_page_can_be_switched_off(tiny_service: ChatService, tmp_path: Path) -> None:
    with run_app(_keyed_app(tiny_service, tmp_path, page=False)) as url:
        for path in ("", "preview", "page/main.js"):
            assert httpx.get(url + path).status_code == 401
    off = _with_settings(tiny_service, page=False)
    with run_app(create_app(off)) as url:
        for path in ("", "preview", "page/main.js"):
            assert httpx.get(url + path).status_code == 404
        assert httpx.get(f"{url}v1/models").status_code == 200


def test_requests_for_files_share_one_label(tiny_service: ChatService) -> None:
    paths: list[str] = []

    class Meter:
        def answer(self, usage: object, timings: object) -> None: ...

        def request(self, path: str, status: int, seconds: float, refusal: str | None) -> None:
            paths.append(path)

    with run_app(create_app(tiny_service, meter=Meter())) as url:
        for path in ("", "preview", "page/main.js", "page/style.css", "page/none"):
            httpx.get(url + path)
    assert paths == ["/", "/preview", *["/page/{file:path}"] * 3]


def test_the_page_is_no_part_of_the_api_description(client: httpx.Client) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "page" in path or path == "/"]


def _with_settings(service: ChatService, **changes: object) -> ChatService:
    changed = copy.copy(service)
    changed.settings = service.settings.model_copy(update=changes)
    return changed


def _keyed_app(service: ChatService, folder: Path, *, page: bool) -> FastAPI:
    file = folder / "keys.json"
    add_key(file, "guest", KeyLimits())
    return create_app(_with_settings(service, keys_file=file, page=page))


def _directives(response: httpx.Response) -> dict[str, str]:
    parts = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}
