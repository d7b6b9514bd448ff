"""The page in a real browser: what people do with it, and what it must not let an answer do."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from drawing import draw, encode
from fakes.openai_replies import Gate
from fakes.openai_requests import image_parts
from fakes.openai_server import OpenAIServer
from playwright.sync_api import Locator, Page, Route, expect

from minigpt4_serve.images import format_names
from minigpt4_serve.web.tasks import EXAMPLES_FOLDER

expect.set_options(timeout=120_000)
Shoot = Callable[[Page, str], None]
Visit = Callable[..., Page]
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def _file(color: str = "red") -> dict[str, object]:
    return {"name": f"{color}.png", "mimeType": "image/png", "buffer": encode(draw(color, (320, 240)))}


def _show(page: Page, *files: object) -> None:
    page.get_by_label("Pictures", exact=True).set_input_files(list(files))  # type: ignore[arg-type]


def _ask(page: Page, words: str) -> None:
    page.get_by_label("Your question").fill(words)
    page.get_by_label("Your question").press("Enter")


def _answers(page: Page) -> Locator:
    return page.locator(".answer")


def _answered(page: Page, words: str) -> None:
    expect(_answers(page).last.locator(".words").first).to_contain_text(words)
    expect(page.get_by_role("button", name=re.compile("again")).last).to_be_visible()


def _until(page: Page, happened: Callable[[], object]) -> None:
    """Wait for what the page doesn't show, and let it go on meanwhile."""
    for _ in range(600):
        if happened():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it didn't happen")


def test_images_are_shown_and_follow_ups_answered(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    screenshot(page, "desktop-begin")
    _show(page, _file("red"), _file("blue"))
    expect(page.locator(".tray li")).to_have_count(2)
    _ask(page, "What is in these pictures?")
    _answered(page, "I see red, blue. You asked: What is in these pictures?")
    expect(_answers(page).last).to_contain_text("14 tokens")
    expect(_answers(page).last).to_contain_text("40 of 52 prompt tokens from the cache")
    _ask(page, "And which is larger?")
    _answered(page, "You asked: What is in these pictures? | And which is larger?")
    expect(page.locator(".tray li")).to_have_count(0)
    screenshot(page, "desktop-talk")
    assert [len(image_parts(message)) for message in scripted.requests[-1].body["messages"]] == [2, 0, 0]
    assert set(scripted.requests[-1].body) == {"model", "messages", "stream", "stream_options"}  # no slider was moved


def test_an_example_is_asked_by_keyboard(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    page.get_by_role("button", name="What is in this picture?").focus()
    page.keyboard.press("Enter")
    _answered(page, "You asked: What is in this picture?")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    _answered(page, "line one")
    assert scripted.requests[-1].text == "line one\nline two"


def test_images_are_added_by_drop_paste_and_camera(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    give = """([type, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
      const target = document.querySelector(type === "drop" ? ".log" : "textarea");
      const event = type === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      target.dispatchEvent(event);
    }"""
    for number, (kind, color) in enumerate([("drop", "green"), ("paste", "blue")], start=1):
        page.evaluate(give, [kind, list(encode(draw(color)))])
        expect(page.locator(".tray li:not(.loading)")).to_have_count(number)
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Take the photo").click()
    expect(page.locator(".tray li:not(.loading)")).to_have_count(3)
    page.get_by_role("button", name="Remove picture 2").click()
    _ask(page, "What?")
    _answered(page, "I see green, some color.")


def test_stop_aborts_the_request(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    page = visit()
    for number, stop in enumerate(("button", "key"), start=1):
        _ask(page, f"a slow one, {stop}")
        expect(_answers(page)).to_have_count(number)  # or the last one's words are taken for this one's
        expect(_answers(page).last).to_contain_text("word3")
        if stop == "button":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press("Escape")
        expect(_answers(page).last).to_contain_text("Stopped.")
        _until(page, lambda number=number: len(scripted.aborted) == number)
    _ask(page, "go on")
    _answered(page, "go on")


def test_a_late_response_to_stop_hides_nothing(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    late: list[str] = []

    def hold_back(route: Route) -> None:
        answer = route.fetch()
        for _ in range(1200):
            if scripted.aborted:
                break
            time.sleep(0.05)
        time.sleep(1)  # the stream's last view comes first
        late.append(route.request.url)
        route.fulfill(response=answer)

    _ask(page, "a slow one")
    expect(_answers(page).last).to_contain_text("word3")
    page.route("**/run/**", hold_back)
    page.get_by_role("button", name="Stop").click()
    expect(_answers(page).last).to_contain_text("Stopped.")
    _until(page, lambda: late)
    page.wait_for_timeout(500)
    expect(_answers(page).last).to_contain_text("Stopped.")


def test_closing_the_page_aborts_the_request(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    _ask(page, "a slow one")
    expect(_answers(page).last).to_contain_text("word3")
    page.close()
    other = visit()
    _until(other, lambda: scripted.aborted)
    assert [request.text for request in scripted.aborted] == ["a slow one"]


def test_regenerate_edit_and_start_over(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    _show(page, _file())
    _ask(page, "Which color?")
    _answered(page, "You asked: Which color?")
    page.get_by_role("button", name="Answer again").click()
    _answered(page, "You asked: Which color?")
    expect(_answers(page)).to_have_count(1)
    page.get_by_role("button", name="Edit this question").click()
    expect(page.get_by_label("Your question")).to_have_value("Which color?")
    _ask(page, "Which shape?")
    _answered(page, "I see red. You asked: Which shape?")
    expect(_answers(page)).to_have_count(1)
    assert len(scripted.requests) == 3
    page.get_by_role("button", name="Start over").click()
    expect(page.get_by_role("heading", name="Show a picture")).to_be_visible()
    _ask(page, "Hello")
    _answered(page, "I see no picture. You asked: Hello")


def test_two_people_have_separate_chats(visit: Visit, gate: Gate) -> None:
    ann, ben = visit(), visit()
    _show(ann, _file("green"))
    _ask(ann, "please wait for Ann")
    expect(_answers(ann).last).to_contain_text(re.compile("[23] questions are ahead of yours"))
    _show(ben, _file("yellow"))
    _ask(ben, "I am Ben")
    _answered(ben, "I see yellow. You asked: I am Ben")
    gate.open()
    _answered(ann, "I see green. You asked: please wait for Ann")
    assert "Ben" not in ann.locator(".log").inner_text()


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "notes.png",
            b"not a picture",
            f"This is not a picture in a supported format. Send a {format_names()}.",
        ),
        ("cut.png", encode(draw())[:80], "The picture is damaged and can't be decoded. Save it again and retry."),
        ("huge.png", b"\x89PNG".ljust(24 * 2**20), "this file is larger than 20 MiB. Choose a smaller one."),
    ],
    ids=["other", "damaged", "huge"],
)
def test_unreadable_files_are_refused_with_a_reason(
    visit: Visit, screenshot: Shoot, tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / "blue.png").write_bytes(encode(draw("blue", (320, 240))))
    (tmp_path / name).write_bytes(data)
    page = visit(viewport={"width": 1280, "height": 800})
    _show(page, tmp_path / "blue.png", tmp_path / name)  # by path: Playwright needs a minute to send 24 MiB
    expect(page.locator(".notice")).to_have_text(f"{name}: {sentence}")
    expect(page.locator(".tray li:not(.loading)")).to_have_count(1)  # the good one stays
    screenshot(page, "error-file")
    _ask(page, "What?")
    _answered(page, "I see blue.")


def test_an_outage_is_shown_and_survived(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    _show(page, _file())
    _ask(page, "Are you there?")
    _answered(page, "Are you there?")
    scripted.stop()
    try:
        _ask(page, "And now?")
        expect(_answers(page).last).to_contain_text("The server does not answer.")
        expect(page.locator(".model")).to_have_text("The server does not answer.")
        screenshot(page, "error-server")
    finally:
        scripted.start()
    expect(page.locator(".model")).to_have_text("minigpt4-test")
    page.get_by_role("button", name="Try again").click()
    _answered(page, "I see red. You asked: Are you there? | And now?")


def test_one_click_tasks_need_an_image(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    page.get_by_role("button", name="Tell a story").click()
    expect(page.locator(".notice")).to_contain_text("Add a picture first")
    _show(page, _file())
    expect(page.locator(".tray li:not(.loading)")).to_have_count(1)
    page.get_by_role("button", name="Tell a story").click()
    _answered(page, "You asked: Write a story about this picture.")
    page.get_by_role("button", name="Go on with the story").click()
    _answered(page, "| Go on with the story.")


def test_boxes_are_drawn(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    example = EXAMPLES_FOLDER / "village.png"
    _show(page, {"name": "village.png", "mimeType": "image/png", "buffer": example.read_bytes()})
    text = "<p>A red house</p> {<10><33><44><89>} stands on the left of <p>a green tree</p> {<56><26><91><84>}."
    scripted.on_word("[grounding]", text)
    expect(page.locator(".tray li:not(.loading)")).to_have_count(1)
    page.get_by_role("button", name="Describe with boxes").click()
    drawn = page.get_by_alt_text("The picture with the boxes of the answer")
    expect(drawn).to_be_visible()
    page.wait_for_function("document.querySelector('.drawn').naturalWidth === 500")
    assert _answers(page).locator(".words").inner_text() == "A red house stands on the left of a green tree."
    colours = [mark.evaluate("node => node.style.getPropertyValue('--own')") for mark in page.locator("mark").all()]
    assert colours == ["#e6194b", "#3cb44b"]
    screenshot(page, "boxes")


def test_a_region_of_the_image_can_be_asked_about(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    _show(page, _file())
    expect(page.locator(".tray li:not(.loading)")).to_have_count(1)
    page.get_by_role("button", name="What is here?").click()
    area = page.locator(".mark").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + area["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.9, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Ask what is there").click()
    _answered(page, "[identify] what is this")
    assert re.search(r"what is this \{<2[456]><(49|5[01])><7[456]><(89|9[01])>\}$", scripted.requests[-1].text)


def test_only_moved_sliders_are_sent(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    page = visit(viewport={"width": 1280, "height": 800})
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("1.2")
    page.get_by_label("Beams").fill("3")
    screenshot(page, "settings")
    _ask(page, "Hello")
    _answered(page, "Hello")
    sent = scripted.requests[-1].body
    assert (sent["temperature"], sent["beams"]) == (1.2, 3)
    assert "top_p" not in sent
    assert "max_tokens" not in sent
    page.get_by_role("button", name="Back to the model's own").click()
    _ask(page, "Hello again")
    _answered(page, "Hello again")
    assert "temperature" not in scripted.requests[-1].body


def test_markup_in_answers_stays_text(visit: Visit, scripted: OpenAIServer) -> None:
    page = visit()
    _ask(page, "markup please")
    _answered(page, "<script>document.title='broken in'</script> and ![a picture](http://127.0.0.1:9/outside.png).")
    expect(_answers(page).locator("img, script, b")).to_have_count(0)
    _ask(page, "<img src=x onerror=\"document.title='broken in'\">")
    _answered(page, "onerror")
    assert page.title() == "Talk to a picture"


def test_a_generated_website_is_sandboxed(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    with _spy() as (address, received):
        scripted.on_word("website", _website(address))
        page = visit(viewport={"width": 1280, "height": 900})
        _ask(page, "a website please")
        frame = page.frame_locator("iframe")
        frame.get_by_role("button", name="Punchline").click()
        expect(frame.get_by_text("To keep an eye on the mouse.")).to_be_visible()  # its own script runs
        expect(frame.locator("#tried")).to_have_text("parent refused, storage refused, fetch refused")
        screenshot(page, "website")
        frame.get_by_role("link", name="Leave").click()
        page.wait_for_timeout(500)
        expect(page.get_by_role("button", name="Code")).to_be_visible()
        page.get_by_role("button", name="Code").click()
        expect(page.locator(".website pre")).to_contain_text("<h1>My joke website</h1>")
        assert page.title() == "Talk to a picture"
        assert received == []


def test_a_phone_in_dark_mode_can_use_the_page(visit: Visit, scripted: OpenAIServer, screenshot: Shoot) -> None:
    page = visit(color_scheme="dark", **PHONE)
    screenshot(page, "phone-dark-begin")
    _show(page, _file("red"), _file("blue"))
    expect(page.locator(".tray li:not(.loading)")).to_have_count(2)
    _ask(page, "What is in these pictures?")
    _answered(page, "I see red, blue.")
    screenshot(page, "phone-dark-talk")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    controls = page.locator(".talk button:visible, .talk textarea:visible").all()
    assert len(controls) >= 3
    for control in controls:
        size = control.bounding_box()
        assert size is not None
        assert min(size["width"], size["height"]) >= 24, control.inner_text()
    ground, ink = page.evaluate(
        "(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.querySelector('.talk')))"
    )
    assert _brightness(ground) < 60 < 190 < _brightness(ink)


def test_the_page_writes_no_files(visit: Visit, scripted: OpenAIServer, page_home: Path) -> None:
    page = visit()
    _show(page, _file())
    _ask(page, "boxes please")
    expect(page.locator(".drawn")).to_be_visible()
    assert [path for path in page_home.rglob("*") if path.is_file()] == []


def _brightness(color: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


def _website(address: str) -> str:
    return f"""Here it is:
```html
<html><body style="font-family: sans-serif; padding: 1rem"><h1>My joke website</h1>
<p>Why did the cat sit on the keyboard?</p>
<button onclick="punch.textContent = 'To keep an eye on the mouse.'">Punchline</button>
<p id="punch"></p><p id="tried" hidden></p>
<a href="{address}/link">Leave</a> <img src="{address}/image.png" width="1" alt="">
<script src="{address}/script.js"></script>
<script>
const tried = [];
try {{ parent.document.title = "broken in"; tried.push("parent open"); }} catch {{ tried.push("parent refused"); }}
try {{ localStorage.length; tried.push("storage open"); }} catch {{ tried.push("storage refused"); }}
fetch("{address}/fetch").then(() => tried.push("fetch open"), () => tried.push("fetch refused"))
  .finally(() => {{ document.getElementById("tried").textContent = tried.join(", "); }});
</script></body></html>
```
"""


@contextmanager
def _spy() -> Iterator[tuple[str, list[bytes]]]:
    """An address, and what is sent to it."""
    received: list[bytes] = []
    opened: list[socket.socket] = []

    def receive(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if data := connection.recv(200):  # Chromium may connect before a click, and send nothing
                received.append(data)

    def listen() -> None:
        with suppress(OSError):
            while True:
                opened.append(listening.accept()[0])
                threading.Thread(target=receive, args=(opened[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", received
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)
        for connection in opened:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
