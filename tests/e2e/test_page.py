"""``minigpt4 web`` without arguments starts a server of its own, and stops it at the end."""

import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from processes import running

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

PASSWORD = "four fish"
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


def test_a_page_with_its_own_server() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium isn't installed; on Debian: apt-get install chromium")
    with running("web", "--port", "0", ready="Open", MINIGPT4_WEB_PASSWORD=PASSWORD) as printed:
        page_url = printed[-1].split()[1]
        (api,) = re.findall(r"The server: (\S+)", "".join(printed))
        with sync_playwright() as playwright:
            quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
            with playwright.chromium.launch(executable_path=chromium, args=quiet, timeout=200_000) as browser:
                page = browser.new_page(reduced_motion="reduce", viewport={"width": 1280, "height": 800})
                page.set_default_timeout(120_000)
                page.goto(page_url)
                page.get_by_label("Password").fill(PASSWORD)
                page.get_by_role("button", name="Come in").click()
                expect(page.locator(".model")).to_have_text("minigpt4-tiny", timeout=120_000)
                page.get_by_role("button", name="What is in this picture?").click()
                answer = page.locator(".answer").last
                expect(answer).to_contain_text("red house", timeout=120_000)
                expect(answer).to_contain_text("prompt tokens from the cache", timeout=120_000)
                page.get_by_label("Your question").fill("What color is the tree?")
                page.keyboard.press("Enter")
                answer = page.locator(".answer").last
                expect(page.locator(".answer")).to_have_count(2, timeout=120_000)
                expect(answer).to_contain_text("prompt tokens from the cache", timeout=120_000)
                SCREENSHOTS.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=SCREENSHOTS / "tiny.png")
                cached, read = map(int, re.findall(r"(\d+) of (\d+) prompt", answer.inner_text())[0])
                assert cached > read / 2  # the image wasn't prefilled again
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{api}/models", timeout=5)
    assert "Stopping" in "".join(printed)
    assert "Traceback" not in "".join(printed)
