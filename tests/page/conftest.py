"""The real application in this process, and a real Chromium in front."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_serving import ScriptedServer, run_app, scripted_server
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.local_engine import load_engine
from minigpt4_serve.settings import EngineSettings, ServeSettings

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"

Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def tiny_service() -> Iterator[ChatService]:
    """A chat on the embedded model."""
    engine, service = load_engine(
        ServeSettings(model_name="minigpt4-tiny", engine=EngineSettings(max_running=8, max_waiting=64, cpu_threads=1))
    )
    yield service
    engine.shutdown()


@pytest.fixture(scope="session")
def tiny_url(tiny_service: ChatService) -> Iterator[str]:
    """The address of a server with the embedded model."""
    with run_app(create_app(tiny_service)) as url:
        yield url


@pytest.fixture(scope="session")
def scripted_session(tiny_service: ChatService) -> Iterator[ScriptedServer]:
    with scripted_server(tiny_service) as server:
        yield server


@pytest.fixture
def scripted(scripted_session: ScriptedServer) -> ScriptedServer:
    """A server with scripted answers."""
    scripted_session.reset()
    return scripted_session


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium with a camera that shows a test picture.

    Of a module's tests only: Playwright runs an event loop, beside which no other test's can run.
    """
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Chromium isn't installed; on Debian: apt-get install chromium (or set CHROMIUM to its path)")
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    # A name of elsewhere that points to this machine, as in DNS rebinding.
    rebound = ["--host-resolver-rules=MAP evil.example 127.0.0.1"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found, args=[*arguments, *camera, *rebound], timeout=200_000
        )
        yield chromium
        chromium.close()


class Visitors:
    """Opens the page as another person each time, and notes what their browsers complain about."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self.contexts: list[BrowserContext] = []
        self.urls: set[str] = set()
        self.complaints: list[str] = []
        self.own = ("http://127.0.0.1:", "blob:", "data:", "about:")
        # Refusals that a test provokes show as status lines.
        self.expected = ("Failed to load resource: the server responded with a status of",)

    def __call__(self, url: str | None = None, *, model: str = "minigpt4", **settings: object) -> Page:
        """A page that shows the name of a model beginning with ``model``; without one, it isn't waited for."""
        context = self._browser.new_context(**{"reduced_motion": "reduce", **settings})  # type: ignore[arg-type]
        context.set_default_timeout(60_000)
        self.contexts.append(context)
        return self.open_tab(context, url, model=model)

    def open_tab(self, context: BrowserContext, url: str | None = None, *, model: str = "minigpt4") -> Page:
        page = context.new_page()
        context.on("requestfinished", lambda request: self.urls.add(request.url))
        context.on("requestfailed", self._note_failure)
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("console", lambda message: self._note(message.type, message.text))
        page.goto(url or self._url)
        if model:
            page.locator(".model", has_text=model).wait_for()
        return page

    def _note_failure(self, request: Request) -> None:
        # What the page's policies forbid never leaves the browser.
        if "csp" not in (request.failure or "").lower():
            self.urls.add(request.url)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(self.expected):
            self.complaints.append(f"{kind}: {text}")


@pytest.fixture
def visit(browser: Browser, scripted: ScriptedServer) -> Iterator[Visitors]:
    """Opens the page of the scripted server; in the end no browser may have complained or asked elsewhere."""
    visitors = Visitors(browser, scripted.url)
    yield visitors
    for context in visitors.contexts:
        context.close()
    assert visitors.urls
    assert [url for url in visitors.urls if not url.startswith(visitors.own)] == []
    assert visitors.complaints == []


@pytest.fixture(scope="session")
def screenshot() -> Callable[[Page, str], None]:
    """Keeps a picture of the page for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"page-{name}.png")

    return take
