"""What stays: chats in the browser's storage, answers as files, links to their settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_driving import answered, answers, ask, image_file, show, wait_for
from page_serving import ScriptedServer
from playwright.sync_api import Page, expect

Shoot = Callable[[Page, str], None]
Visit = Any
STORED = """() => new Promise((resolve) => {
  const opening = indexedDB.open("minigpt4");
  opening.onsuccess = () => {
    const transaction = opening.result.transaction(["chats", "pictures"]);
    const counts = ["chats", "pictures"].map((name) => transaction.objectStore(name).count());
    transaction.oncomplete = () => resolve(counts.map((count) => count.result));
  };
})"""


def test_a_chat_survives_a_reload(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    show(page, image_file("green"))
    ask(page, "Which color?")
    answered(page, "I see green.")
    page.reload()
    answered(page, "I see green. You asked: Which color?")
    expect(page.locator(".pictures img")).to_have_js_property("naturalWidth", 320)
    ask(page, "And now?")
    answered(page, "I see green. You asked: Which color? | And now?")
    first, second = scripted.requests
    assert first.images == second.images
    page.get_by_role("button", name="Edit this question").first.click()
    expect(page.locator(".tray img")).to_have_js_property("naturalWidth", 320)


def test_a_reload_in_the_middle_keeps_the_words_so_far(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.on_word("slow", [step for number in range(2000) for step in (f"word{number} ", 0.02)])
    page = visit()
    ask(page, "a slow one")
    expect(answers(page).last).to_contain_text("word60")
    page.reload()
    expect(answers(page).last).to_contain_text("word20")
    expect(answers(page).last).to_contain_text("Stopped.")
    wait_for(page, lambda: scripted.aborted)


def test_earlier_chats_are_listed_and_forgotten(visit: Visit, scripted: ScriptedServer, screenshot: Shoot) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    for color in ("red", "blue"):
        show(page, image_file(color))
        ask(page, f"A {color} one")
        answered(page, f"I see {color}.")
        page.get_by_role("button", name="Start over").click()
    page.get_by_role("button", name="History").click()
    expect(page.locator(".chat")).to_have_count(2)
    expect(page.locator(".chat").first).to_contain_text("A blue one")
    screenshot(page, "history")
    page.get_by_role("button", name="A red one").first.click()
    answered(page, "I see red. You asked: A red one")
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name="Forget “A red one”").click()
    expect(page.locator(".chat")).to_have_count(1)
    expect(answers(page)).to_have_count(0)
    assert page.evaluate(STORED) == [1, 1]
    page.get_by_role("button", name="Forget all chats").click()
    expect(page.locator(".chats")).to_contain_text("No chats yet.")
    assert page.evaluate(STORED) == [0, 0]
    page.reload()
    expect(page.get_by_role("heading", name="Show a picture")).to_be_visible()


def test_forgetting_reaches_other_tabs(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    ask(page, "Hello")
    answered(page, "Hello")
    other = visit.open_tab(page.context)
    expect(answers(other)).to_have_count(0)  # a tab is a chat of its own
    other.get_by_role("button", name="History").click()
    other.get_by_role("button", name="Forget all chats").click()
    expect(answers(page)).to_have_count(0)


def test_two_tabs_with_one_chat_go_separate_ways(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    ask(page, "Hello")
    answered(page, "Hello")
    other = visit.open_tab(page.context)
    other.get_by_role("button", name="History").click()
    other.get_by_role("button", name="Hello").first.click()
    answered(other, "Hello")
    ask(other, "I am the other")
    answered(other, "I am the other")
    ask(page, "I am the first")
    answered(page, "Hello | I am the first")
    for tab, words in ((page, "I am the first"), (other, "I am the other")):
        tab.reload()
        answered(tab, f"Hello | {words}")
    assert page.evaluate(STORED) == [2, 0]


def test_history_can_be_switched_off(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    ask(page, "Hello")
    answered(page, "Hello")
    page.get_by_role("button", name="History").click()
    page.get_by_label("Keep chats in this browser").uncheck()
    expect(page.locator(".chats")).to_contain_text("No chats yet.")
    page.keyboard.press("Escape")
    ask(page, "Again")
    answered(page, "Hello | Again")
    assert page.evaluate(STORED) == [0, 0]


def test_a_tab_keeps_its_settings(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Top-p").fill("0.5")
    page.reload()
    expect(page.locator(".model")).to_have_text("minigpt4-scripted")
    ask(page, "Hello")
    answered(page, "Hello")
    assert scripted.requests[-1].body["top_p"] == 0.5


def test_an_answer_is_copied_and_linked(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.on_word("boxes", ["<p>a dog</p> {<1><2><30><40>} &amp; **more**"])
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.7")
    page.keyboard.press("Escape")
    ask(page, "boxes & more?")
    answered(page, "more")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "a dog & **more**"
    page.get_by_role("button", name="Share").click()
    page.get_by_role("button", name="Copy a link").click()
    expect(page.get_by_role("dialog")).to_contain_text("The link is on the clipboard.")
    link = page.evaluate("navigator.clipboard.readText()")
    other = visit.open_tab(page.context, link)
    expect(other.get_by_label("Your question")).to_have_value("boxes & more?")
    assert other.url == scripted.url
    assert len(scripted.requests) == 1  # a link asks nothing by itself
    other.keyboard.press("Enter")
    answered(other, "more")
    assert scripted.requests[-1].body["temperature"] == 0.7


@pytest.mark.parametrize(
    "values", ["temperature=99&top_p=-1&max_tokens=x&beams=1e9", "temperature=&__proto__=1&stream=0"]
)
def test_a_link_brings_no_impossible_settings(visit: Visit, scripted: ScriptedServer, values: str) -> None:
    page = visit(f"{scripted.url}#question=<img src=x onerror=alert(1)>&{values}")
    expect(page.get_by_label("Your question")).to_have_value("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    answered(page, "<img src=x onerror=alert(1)>")
    assert set(scripted.requests[-1].body) == {"model", "messages", "stream", "stream_options"}


def test_an_answer_is_a_file(visit: Visit, scripted: ScriptedServer, tmp_path: Path) -> None:
    script = "<script>document.title = 'broken in'</script>"
    scripted.on_word("boxes", [f"<p>a disc</p> {{<25><25><75><75>}} **bold** {script}\n\n```js\n{script}\n```\n"])
    page = visit()
    show(page, image_file())
    ask(page, f"boxes & {script}?")
    answered(page, "bold")
    page.get_by_role("button", name="Share").click()
    saved = {}
    for label, suffix in (("Download as HTML", "html"), ("Download as Markdown", "md")):
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == f"boxes-script-document-title-broken-in-script.{suffix}"
        saved[suffix] = tmp_path / f"answer.{suffix}"
        download.value.save_as(saved[suffix])
    markdown = saved["md"].read_text(encoding="utf-8")
    assert "](data:image/png;base64," in markdown
    assert "> boxes &amp; &lt;script&gt;document" in markdown
    assert "a disc **bold** &lt;script>document" in markdown
    assert f"```js\n{script}\n```" in markdown
    assert "*Answered by minigpt4-scripted*" in markdown
    visit.own += ("file:",)
    page.goto(saved["html"].as_uri())
    expect(page.locator("h1")).to_have_text(f"boxes & {script}?")
    expect(page.locator("strong")).to_have_text("bold")
    expect(page.locator("body")).to_contain_text(script)
    expect(page.locator("img")).to_have_js_property("naturalWidth", 320)
    expect(page.locator("svg text")).to_have_text("a disc")
    assert page.title() == f"boxes & {script}?"
