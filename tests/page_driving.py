"""What people do with the page, for its tests."""

import re
from collections.abc import Callable

from drawing import draw, encode
from playwright.sync_api import Locator, Page, expect

__all__ = ["PHONE", "answered", "answers", "ask", "image_file", "show", "wait_for"]

expect.set_options(timeout=30_000)

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def image_file(color: str = "red", name: str | None = None) -> dict[str, object]:
    return {"name": name or f"{color}.png", "mimeType": "image/png", "buffer": encode(draw(color, (320, 240)))}


def show(page: Page, *files: object) -> None:
    """Add files and wait until they can be sent."""
    before = page.locator(".tray li").count()
    page.get_by_label("Pictures", exact=True).set_input_files(list(files))  # type: ignore[arg-type]
    expect(page.locator(".tray li:not(.loading)")).to_have_count(before + len(files))


def ask(page: Page, words: str) -> None:
    page.get_by_label("Your question").fill(words)
    page.get_by_label("Your question").press("Enter")


def answers(page: Page) -> Locator:
    return page.locator(".answer")


def answered(page: Page, words: str) -> None:
    """Until the last answer is complete and has these words."""
    expect(answers(page).last.locator(".said")).to_contain_text(words)
    expect(page.get_by_role("button", name=re.compile("again")).last).to_be_visible()


def wait_for(page: Page, happened: Callable[[], object]) -> None:
    """Wait for what the page doesn't show, and let it go on meanwhile."""
    for _ in range(600):
        if happened():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it didn't happen")
