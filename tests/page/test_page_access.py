"""What a Lighthouse run would look at: names of controls, contrast, the keyboard's path."""

import re
from typing import Any

import pytest
from page_driving import PHONE, answered, ask, image_file, show
from page_serving import ScriptedServer
from playwright.sync_api import Page, expect

Visit = Any
NAMED = {
    "button", "textbox", "slider", "checkbox", "image", "img", "dialog", "link", "group", "main", "form", "Iframe",
    "application", "RootWebArea",
}  # fmt: skip
CONTRAST = """() => {
  const parse = (color) => {
    const values = color.match(/[\\d.]+/g).map(Number);
    const scale = color.startsWith("color(srgb") ? 255 : 1;
    return [...values.slice(0, 3).map((value) => value * scale), values[3] ?? 1];
  };
  const luminance = (rgb) => rgb.map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const over = (top, bottom) => [0, 1, 2].map((index) => top[index] * top[3] + bottom[index] * (1 - top[3]));
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({ checkOpacity: true })) continue;
    if (node.closest("svg") || node.closest(":disabled") || node.closest("[aria-hidden=true]")) continue;
    const style = getComputedStyle(node);
    const below = ground(node);
    let faded = 1;
    for (let at = node; at; at = at.parentElement) faded *= Number(getComputedStyle(at).opacity);
    const ink = parse(style.color);
    const shown = over([...ink.slice(0, 3), ink[3] * faded], below);
    const [a, b] = [luminance(shown), luminance(below)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) low.push([walker.currentNode.data.trim(), ratio.toFixed(2)]);
  }
  return low;
}"""


def _states(page: Page, scripted: ScriptedServer) -> Any:
    """The page in all of its states, by name."""
    website = "```html\n<html><p>Hi</p></html>\n```"
    scripted.on_word(
        "boxes", [f"<p>A disc</p> {{<25><25><75><75>}} and\n\n> a quote\n\n`code`\n\n```py\n1\n```\n{website}"]
    )
    yield "begin"
    show(page, image_file())
    yield "tray"
    ask(page, "boxes")
    answered(page, "A disc")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("2/2")).to_be_visible()
    yield "answer"
    page.get_by_role("button", name="Edit this question").click()
    yield "editing"
    page.get_by_role("button", name="Keep the old question").click()
    scripted.failures.append(RuntimeError("broken"))
    ask(page, "Hello")
    expect(page.locator(".problem")).to_be_visible()
    yield "error"
    for opened in ("History", "Settings", "Share", "What is here?", "Take a photo"):
        page.get_by_role("button", name=opened).last.click()
        page.get_by_role("dialog").wait_for()
        yield opened
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("size", [{"viewport": {"width": 1280, "height": 800}}, PHONE], ids=["desktop", "phone"])
def test_every_control_has_a_name(visit: Visit, scripted: ScriptedServer, size: dict[str, Any]) -> None:
    page = visit(**size)
    session = page.context.new_cdp_session(page)
    for state in _states(page, scripted) if size is not PHONE else ["begin"]:
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        assert len(shown) > 5
        nameless = [
            node
            for node in shown
            if node["role"]["value"] in NAMED and not node.get("name", {}).get("value", "").strip()
        ]
        assert nameless == [], state


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(visit: Visit, scripted: ScriptedServer, scheme: str) -> None:
    page = visit(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    for state in _states(page, scripted):
        assert page.evaluate(CONTRAST) == [], state


def test_the_keyboard_reaches_everything_in_order(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    show(page, image_file())
    ask(page, "Hello")
    answered(page, "Hello")
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, ring = page.evaluate(
            """() => {
              const at = document.activeElement;
              const style = getComputedStyle(at.tagName === "TEXTAREA" ? at.closest(".box") : at);
              const ring = at.tagName === "TEXTAREA" ? style.boxShadow : style.outlineStyle;
              return [at === document.body ? "body" : at.getAttribute("aria-label") ?? at.textContent.trim(), ring];
            }"""
        )
        if reached and name == reached[0]:
            break
        if name == "body":  # between the last control and the first
            continue
        reached.append(name)
        assert name
        assert ring not in ("none", ""), name
    order = ["History", "Settings", "Start over", "Edit this question", "Answer again", "Copy", "Share"]
    order += ["Describe it", "All tasks", "Add pictures", "Take a photo", "Your question"]
    assert [name for name in reached if name in order] == order


def test_an_ended_answer_is_announced_once(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    ask(page, "Hello")
    answered(page, "Hello")
    expect(page.locator(".announcer")).to_have_text("I see no picture. You asked: Hello")
    assert page.locator(".said[aria-live], .exchanges [aria-live]").count() == 0


def test_the_document_is_well_formed(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "Talk to a picture"
    assert page.locator("h1").count() == 1
    assert "user-scalable" not in (page.locator("meta[name=viewport]").get_attribute("content") or "")
    ids = page.locator("[id]").evaluate_all("nodes => nodes.map(node => node.id)")
    assert len(ids) == len(set(ids))
    assert re.search("light dark", page.locator("meta[name=color-scheme]").get_attribute("content") or "")
