"""Takes the screenshots of docs/web.md: ``python tests/record_page.py``. Needs Chromium; look at them afterwards."""

import io
import os
import shutil
from pathlib import Path

from page_driving import PHONE, answered, ask, show
from page_serving import ScriptedServer, run_app, scripted_server
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from minigpt4_serve.errors import Overloaded
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.local_engine import load_engine
from minigpt4_serve.settings import EngineSettings, ServeSettings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
VILLAGE = ROOT / "minigpt4_serve" / "page" / "examples" / "village.png"
DESKTOP = {"viewport": {"width": 1100, "height": 860}, "device_scale_factor": 1.5}

BOXES = "<p>A red house</p> {<10><33><44><89>} stands on the left of <p>a green tree</p> {<56><26><91><84>}."
WEBSITE = """Here is the page from your sketch:
```html
<!doctype html>
<html><head><style>
  body { font-family: system-ui, sans-serif; background: #fff7e8; color: #2b2118; text-align: center; padding: 2rem; }
  h1 { font-size: 2.2rem; margin: .5rem 0 1.5rem; } p { font-size: 1.15rem; }
  button { font: inherit; font-weight: 600; padding: .6rem 1.4rem; border: 0; border-radius: 2rem; background: #e4572e;
    color: #fff; }
</style></head><body>
  <h1>My Joke Website</h1>
  <p>Why did the cat sit on the keyboard?</p>
  <button onclick="this.nextElementSibling.hidden = false">Push to reveal the punchline</button>
  <p hidden>To keep an eye on the mouse.</p>
</body></html>
```
"""


def main() -> None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    engine, service = load_engine(ServeSettings(model_name="minigpt4-tiny", engine=EngineSettings(cpu_threads=1)))
    with run_app(create_app(service)) as tiny, scripted_server(service) as scripted, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=200_000)
        _chats(browser, tiny)
        _scripted(browser, scripted)
        browser.close()
    engine.shutdown()


def _chats(browser: Browser, url: str) -> None:
    for name, settings in {
        "web": DESKTOP,
        "web-dark": {**DESKTOP, "color_scheme": "dark"},
        "web-phone": {**PHONE, "color_scheme": "dark"},
    }.items():
        page = _visit(browser, url, settings)
        page.get_by_role("button", name="What is in this picture?").click()
        answered(page, "red house")
        ask(page, "What color is the tree?")
        answered(page, "green")
        page.locator(".exchanges > li:nth-child(2) .note").wait_for()
        _save(page, name)


def _scripted(browser: Browser, server: ScriptedServer) -> None:
    server.on_word("[grounding]", [BOXES])
    server.on_word("website", [WEBSITE])
    page = _visit(browser, server.url, DESKTOP)
    show(page, VILLAGE)
    page.get_by_role("button", name="Describe with boxes").click()
    page.locator(".drawn").wait_for()
    _save(page, "web-boxes")
    page = _visit(browser, server.url, DESKTOP)
    ask(page, "Write a website from this sketch: my joke page, with a button.")
    page.frame_locator("iframe").get_by_role("button").click()
    _save(page, "web-website")
    page = _visit(browser, server.url, DESKTOP)
    server.failures.append(Overloaded("The server is busy.", retry_after=61.0))
    show(page, VILLAGE)
    ask(page, "What is in this picture?")
    page.locator(".problem").wait_for()
    _save(page, "web-error")


def _visit(browser: Browser, url: str, settings: dict[str, object]) -> Page:
    page = browser.new_context(reduced_motion="reduce", **settings).new_page()  # type: ignore[arg-type]
    page.goto(url)
    page.locator(".model", has_text="minigpt4").wait_for()
    return page


def _save(page: Page, name: str) -> None:
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").quantize(220, dither=Image.Dither.NONE).save(DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
