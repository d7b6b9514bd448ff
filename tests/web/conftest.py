"""The real page as a process, the fake server behind it, and a real Chromium in front."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.openai_replies import ErrorEvent, Gate, Reply, colors_and_questions, refusal
from fakes.openai_requests import FIELDS
from fakes.openai_server import OpenAIServer
from playwright.sync_api import Browser, Page, Request, sync_playwright
from processes import running

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
"""Look at them after a run: what the tests can't judge is whether it looks good."""

CARD = {
    "max_images": 8,
    "context_length": 2048,
    "capabilities": {"vision": True, "streaming": True, "max_beams": 10, "boxes": True},
    "defaults": {"temperature": 0.6, "top_p": 0.9, "max_tokens": 300},
}

BOXES = "<p>A red disc</p> {<25><25><75><75>} on <p>white paper</p> {<0><0><100><100>}."
MARKUP = (
    "Words with <b>tags</b>, <img src=x onerror=\"document.title='broken in'\">, "
    "<script>document.title='broken in'</script> and ![a picture](http://127.0.0.1:9/outside.png)."
)
QUEUED = {"x-minigpt4-queue-position": "3", "x-minigpt4-expected-wait": "12"}

Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def session_gate() -> Gate:
    return Gate()


@pytest.fixture(scope="session")
def scripted_server(session_gate: Gate) -> Iterator[OpenAIServer]:
    """The server behind the page; some words in a question change its answer."""
    with OpenAIServer(card=CARD, fields=FIELDS | {"beams"}, default=Reply(colors_and_questions)) as server:
        server.on_word("boxes", BOXES)
        server.on_word("markup", MARKUP)
        server.on_word("full", refusal(429, "overloaded", retry_after="61"))
        server.on_word("spent", refusal(429, "rate_limit_exceeded", retry_after="43000"))
        server.on_word("late", refusal(408, "deadline_exceeded"))
        server.on_word("broken", Reply([colors_and_questions, ErrorEvent()]))
        server.on_word("slow", Reply(lambda _: (f"word{number} " for number in itertools.count()), delay_s=0.05))
        queued = Reply([session_gate, colors_and_questions], headers=QUEUED, comments=("waiting, 2 ahead",))
        server.on_word("wait", queued)
        yield server


@pytest.fixture
def scripted(scripted_server: OpenAIServer, session_gate: Gate) -> OpenAIServer:
    """The same without earlier requests."""
    scripted_server.requests.clear()
    scripted_server.aborted.clear()
    session_gate.close()
    return scripted_server


@pytest.fixture
def gate(scripted: OpenAIServer, session_gate: Gate) -> Gate:
    """Where questions with the word "wait" are queued."""
    return session_gate


@pytest.fixture(scope="session")
def page_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home, temporary and working folder of the page's process: what it leaves behind, it leaves here."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def page_url(scripted_server: OpenAIServer, page_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``minigpt4 web``, started once."""
    folders = {name: str(page_home) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME")}
    # Gradio imports matplotlib where it finds it, as in this environment; a page's own installation has none.
    folders["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))
    words = ("web", "--server", scripted_server.origin, "--port", "0")
    with running(*words, ready="Open", folder=page_home, MINIGPT4_WEB_PASSWORD="", **folders) as printed:
        yield printed[-1].split()[1]
    # Not even while it ran: a test looks for files then.
    assert [path for path in page_home.rglob("*") if path.is_file()] == []
    assert "Traceback" not in "".join(printed)


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
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=[*arguments, *camera], timeout=200_000)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, page_url: str) -> Iterator[Visit]:
    """Opens the page as another person each time; at the end nobody must have been led to another address."""
    people = []
    asked: list[str] = []
    broken: list[str] = []

    def open_page(url: str = page_url, **settings: object) -> Page:
        person = browser.new_context(reduced_motion="reduce", **settings)  # type: ignore[arg-type]
        person.set_default_timeout(120_000)
        people.append(person)
        page = person.new_page()
        person.on("requestfinished", lambda request: asked.append(request.url))
        person.on("requestfailed", lambda request: _note_attempt(request, asked))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(url)
        page.locator(".model", has_text="minigpt4").wait_for()
        return page

    yield open_page
    for person in people:
        person.close()
    assert asked
    own = (page_url, f"blob:{page_url}", "data:", "about:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert broken == []


def _note_attempt(request: Request, asked: list[str]) -> None:
    # What the page's own rules forbid never leaves the browser.
    if "csp" not in (request.failure or "").lower():
        asked.append(request.url)


@pytest.fixture(scope="session")
def screenshot() -> Callable[[Page, str], None]:
    """Keeps a picture of the page for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take
