"""``minigpt4 web`` starts the server, opens its page in the browser, and stops the server at the end."""

import asyncio
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from page_driving import answers, ask
from playwright.sync_api import expect, sync_playwright
from processes import free_port, running
from waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


def test_web_serves_the_page_and_opens_it(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium isn't installed; on Debian: apt-get install chromium")
    opened = tmp_path / "opened"
    (browser_command := tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser_command.chmod(0o755)
    url = f"http://127.0.0.1:{free_port()}/"
    port = url.rstrip("/").rpartition(":")[2]
    with running("web", "--port", port, ready=f"Open {url}", BROWSER=f"{browser_command} %s") as printed:
        asyncio.run(wait_until(lambda: opened.exists() and opened.read_text().strip() == url))
        with sync_playwright() as playwright:
            quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
            with playwright.chromium.launch(executable_path=chromium, args=quiet, timeout=200_000) as browser:
                page = browser.new_page(reduced_motion="reduce", viewport={"width": 1280, "height": 800})
                page.set_default_timeout(120_000)
                page.goto(url)
                expect(page.locator(".model")).to_contain_text("tiny", timeout=120_000)
                page.get_by_role("button", name="What is in this picture?").click()
                expect(answers(page).last).to_contain_text("red house", timeout=120_000)
                # Complete: until then, a question stays in the composer.
                expect(answers(page).last).to_contain_text("prompt tokens from the cache", timeout=120_000)
                ask(page, "What color is the tree?")
                expect(answers(page)).to_have_count(2, timeout=120_000)
                answer = answers(page).last
                expect(answer).to_contain_text("prompt tokens from the cache", timeout=120_000)
                SCREENSHOTS.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=SCREENSHOTS / "tiny.png")
                cached, read = map(int, re.findall(r"(\d+) of (\d+) prompt", answer.inner_text())[0])
                assert cached > read / 2  # the image wasn't prefilled again
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}health", timeout=5)
    assert "Stopping" in "".join(printed)
    assert "Traceback" not in "".join(printed)
