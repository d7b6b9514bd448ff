"""The page in front of the embedded model."""

import re
from collections.abc import Callable
from typing import Any

from page_driving import PHONE, answers, ask
from playwright.sync_api import Page, expect
from serving_app import settled

from minigpt4_serve.server.http.chat_service import ChatService

Shoot = Callable[[Page, str], None]


def test_the_embedded_model_is_asked(visit: Any, tiny_url: str, tiny_service: ChatService, screenshot: Shoot) -> None:
    page = visit(tiny_url, viewport={"width": 1280, "height": 800})
    expect(page.locator(".model")).to_have_text("minigpt4-tiny")
    page.get_by_role("button", name="What is in this picture?").click()
    expect(answers(page).last).to_contain_text("red house")
    expect(answers(page).last).to_contain_text("prompt tokens from the cache")
    ask(page, "What color is the tree?")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_contain_text("prompt tokens from the cache")
    cached, read = map(int, re.findall(r"(\d+) of (\d+) prompt", answers(page).last.inner_text())[0])
    assert cached > read / 2  # the picture wasn't read again
    screenshot(page, "desktop")
    settled(tiny_service)


def test_a_phone_asks_the_embedded_model(visit: Any, tiny_url: str, screenshot: Shoot) -> None:
    page = visit(tiny_url, color_scheme="dark", **PHONE)
    page.get_by_role("button", name="How many objects are there?").click()
    expect(answers(page).last).to_contain_text(re.compile("three", re.IGNORECASE))
    expect(answers(page).last).to_contain_text("prompt tokens from the cache")
    screenshot(page, "phone")
