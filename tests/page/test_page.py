"""The page in a real browser, in front of the real routes with scripted answers: what people do with it."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_requests import image_parts
from page_driving import PHONE, answered, answers, ask, image_file, show, wait_for
from page_serving import Gate, ScriptedServer, full, queued, scripted_server
from PIL import Image
from playwright.sync_api import Page, expect
from processes import free_port

from minigpt4_serve.errors import DeadlineExceeded, EngineFailed, RateLimited
from minigpt4_serve.server.http.chat_service import ChatService

Shoot = Callable[[Page, str], None]
Visit = Any
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
VILLAGE = Path(__file__).parents[2] / "minigpt4_serve" / "page" / "examples" / "village.png"
SLOW = [step for number in range(2000) for step in (f"word{number} ", 0.02)]


def test_images_are_shown_and_follow_ups_answered(visit: Visit, scripted: ScriptedServer, screenshot: Shoot) -> None:
    page = visit(**DESKTOP)
    screenshot(page, "begin")
    show(page, image_file("red"), image_file("blue"))
    ask(page, "What is in these pictures?")
    answered(page, "I see red, blue. You asked: What is in these pictures?")
    expect(answers(page).last).to_contain_text("14 tokens")
    expect(answers(page).last).to_contain_text("40 of 52 prompt tokens from the cache")
    ask(page, "And which is larger?")
    answered(page, "You asked: What is in these pictures? | And which is larger?")
    expect(page.locator(".tray li")).to_have_count(0)
    body = scripted.requests[-1].body
    assert [len(image_parts(message)) for message in body["messages"]] == [2, 0, 0]
    assert set(body) == {"model", "messages", "stream", "stream_options"}  # no slider was moved


def test_an_example_is_asked_by_keyboard(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    page.get_by_role("button", name="What is in this picture?").focus()
    page.keyboard.press("Enter")
    answered(page, "You asked: What is in this picture?")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    answered(page, "line one")
    assert scripted.requests[-1].text == "line one\nline two"


def test_images_are_added_by_drop_paste_and_camera(visit: Visit, scripted: ScriptedServer) -> None:
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
    ask(page, "What?")
    answered(page, "I see green, some color.")


def test_stop_frees_the_slot_at_the_server(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.on_word("slow", SLOW)
    page = visit()
    for number, stop in enumerate(("button", "key"), start=1):
        ask(page, f"a slow one, {stop}")
        expect(answers(page)).to_have_count(number)
        expect(answers(page).last).to_contain_text("word3")
        if stop == "button":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press("Escape")
        expect(answers(page).last).to_contain_text("Stopped.")
        wait_for(page, lambda number=number: len(scripted.aborted) == number)
        assert scripted.running == 0
    ask(page, "go on")
    answered(page, "go on")


def test_closing_the_page_aborts_the_request(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.on_word("slow", SLOW)
    page = visit()
    ask(page, "a slow one")
    expect(answers(page).last).to_contain_text("word3")
    page.close()
    other = visit()
    wait_for(other, lambda: scripted.aborted)
    assert [request.text for request in scripted.aborted] == ["a slow one"]


def test_answers_and_questions_have_versions(visit: Visit, scripted: ScriptedServer) -> None:
    numbers = iter(range(1, 100))
    scripted.on_word("count", lambda _: [f"number {next(numbers)}"])
    page = visit()
    show(page, image_file())
    ask(page, "count please")
    answered(page, "number 1")
    page.get_by_role("button", name="Answer again").click()
    answered(page, "number 2")
    expect(answers(page)).to_have_count(1)
    page.get_by_role("button", name="Previous version of this answer").click()
    answered(page, "number 1")
    ask(page, "Which shape?")
    answered(page, "count please | Which shape?")
    assert scripted.requests[-1].transcript[1] == ("assistant", "number 1")
    page.get_by_role("button", name="Edit this question").first.click()
    expect(page.get_by_label("Your question")).to_have_value("count please")
    expect(page.locator(".tray li")).to_have_count(1)
    ask(page, "Which color?")
    answered(page, "I see red. You asked: Which color?")
    expect(answers(page)).to_have_count(1)
    page.get_by_role("button", name="Previous version of this question").click()
    expect(answers(page)).to_have_count(2)
    answered(page, "Which shape?")
    page.get_by_role("button", name="Start over").click()
    expect(page.get_by_role("heading", name="Show a picture")).to_be_visible()
    ask(page, "Hello")
    answered(page, "I see no picture. You asked: Hello")


def test_an_edit_can_be_given_up(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    ask(page, "Hello")
    answered(page, "Hello")
    page.get_by_role("button", name="Edit this question").click()
    page.get_by_role("button", name="Keep the old question").click()
    expect(page.get_by_label("Your question")).to_have_value("")
    ask(page, "And then?")
    answered(page, "You asked: Hello | And then?")


def test_the_place_in_the_queue_is_shown(visit: Visit, scripted: ScriptedServer) -> None:
    first = Gate()
    second = Gate()
    scripted.on_word("wait", [queued(3, 12.0), first, queued(2), second, "done"])
    page = visit()
    ask(page, "please wait")
    expect(answers(page).last).to_contain_text("3 questions are ahead of yours, about 12 s.")
    first.open()
    expect(answers(page).last).to_contain_text("2 questions are ahead of yours.")
    second.open()
    answered(page, "done")


def test_a_full_server_is_asked_again(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.failures.extend([full(1.0), full(1.0)])
    page = visit()
    ask(page, "Hello")
    expect(answers(page).last).to_contain_text("The server is full. It is asked again in 1 s.")
    answered(page, "You asked: Hello")
    assert len(scripted.requests) == 3


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (full(61.0), "The server is full. Try again in 61 seconds."),
        (RateLimited("Used up.", retry_after=43000), "Your share of the server is used up. Try again in 12 hours."),
        (DeadlineExceeded("Too late."), "The server's time for this answer ran out."),
        (EngineFailed("It broke."), "The server failed while answering. Try again in a moment."),
    ],
    ids=["full", "spent", "late", "broken"],
)
def test_a_refusal_is_one_sentence(visit: Visit, scripted: ScriptedServer, error: Exception, sentence: str) -> None:
    # Chromium itself asks again after a 408 on a connection that it has used before.
    scripted.failures.extend([error] * (2 if isinstance(error, DeadlineExceeded) else 1))
    page = visit()
    ask(page, "Hello")
    expect(answers(page).last.locator(".problem")).to_contain_text(sentence)
    page.get_by_role("button", name="Try again").click()
    answered(page, "You asked: Hello")
    expect(page.get_by_role("button", name="Previous version of this answer")).to_have_count(0)


def test_an_error_in_the_middle_keeps_the_words(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.on_word("breaks", ["Half an answer", EngineFailed("It broke.")])
    page = visit()
    ask(page, "this breaks")
    expect(answers(page).last.locator(".problem")).to_contain_text("The server failed while answering.")
    expect(answers(page).last.locator(".said")).to_contain_text("Half an answer")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "notes.png",
            b"not a picture",
            "This is not a picture that can be read. Choose a PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF or HEIC.",
        ),
        ("huge.png", b"\x89PNG".ljust(24 * 2**20), "This file is larger than 20 MiB. Choose a smaller one."),
    ],
    ids=["other", "huge"],
)
def test_unreadable_files_are_refused_with_a_reason(
    visit: Visit, scripted: ScriptedServer, screenshot: Shoot, tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / "blue.png").write_bytes(encode(draw("blue", (320, 240))))
    (tmp_path / name).write_bytes(data)
    page = visit(**DESKTOP)
    # By path: Playwright needs a minute to send 24 MiB.
    page.get_by_label("Pictures", exact=True).set_input_files([tmp_path / "blue.png", tmp_path / name])
    expect(page.locator(".notice")).to_have_text(f"{name}: {sentence}")
    expect(page.locator(".tray li:not(.loading)")).to_have_count(1)  # the good one stays
    screenshot(page, "error-file")
    ask(page, "What?")
    answered(page, "I see blue.")


def test_what_a_browser_cannot_decode_goes_as_it_is(visit: Visit, scripted: ScriptedServer) -> None:
    damaged = encode(draw())[:80]
    page = visit()
    show(page, {"name": "cut.png", "mimeType": "image/png", "buffer": damaged})
    ask(page, "What?")
    expect(answers(page).last.locator(".problem")).to_be_visible()
    assert scripted.requests[-1].images == [damaged]


def test_an_outage_is_shown_and_survived(
    visit: Visit, tiny_service: ChatService, scripted: ScriptedServer, screenshot: Shoot
) -> None:
    visit.expected += ("Failed to load resource: net::ERR_",)
    port = free_port()
    with scripted_server(tiny_service, port=port) as server:
        page = visit(server.url, **DESKTOP)
        show(page, image_file())
        ask(page, "Are you there?")
        answered(page, "Are you there?")
    ask(page, "And now?")
    expect(answers(page).last).to_contain_text("The server does not answer.")
    expect(page.locator(".model")).to_have_text("The server does not answer.")
    screenshot(page, "error-server")
    with scripted_server(tiny_service, port=port):
        expect(page.locator(".model")).to_have_text("minigpt4-scripted")
        page.get_by_role("button", name="Try again").click()
        answered(page, "I see red. You asked: Are you there? | And now?")


@pytest.mark.parametrize("question", [None, "lost at once", "cut in the middle"])
def test_the_dot_turns_red_when_the_server_is_gone(
    question: str | None, visit: Visit, scripted: ScriptedServer
) -> None:
    visit.expected += ("Failed to load resource: net::ERR_",)
    page = visit()
    expect(page.locator(".model.away")).to_have_count(0)
    page.route("**/v1/models", lambda route: route.abort())
    if question:
        half = 'data: {"choices": [{"index": 0, "delta": {"content": "A red"}}]}\n\n'
        page.route(
            "**/v1/chat/completions",
            lambda route: (
                route.fulfill(body=half, content_type="text/event-stream") if "cut" in question else route.abort()
            ),
        )
        ask(page, question)
        expect(answers(page).last.locator(".problem")).to_contain_text("Check that it is running")
    expect(page.locator(".model.away")).to_have_text("The server does not answer.")
    page.unroute("**/v1/models")
    expect(page.locator(".model.away")).to_have_count(0)


@pytest.mark.parametrize(
    ("slider", "value", "note"),
    [
        ("Temperature", "0", "temperature 0 would repeat the same words."),
        ("Beams", "3", "a beam search would repeat the same words."),
        ("Temperature", "1.2", None),
    ],
)
def test_answering_again_varies_the_words(
    slider: str, value: str, note: str | None, visit: Visit, scripted: ScriptedServer
) -> None:
    page = visit()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label(slider).fill(value)
    page.keyboard.press("Escape")
    ask(page, "Hello")
    answered(page, "Hello")
    name = slider.lower()
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("2/2")).to_be_visible()
    answered(page, "Hello")
    ask(page, "And then")
    answered(page, "And then")
    first, again, later = (request.body for request in scripted.requests)
    assert first[name] == later[name] == float(value), "the settings stay"
    assert again["temperature"] == (0.7 if note else float(value))
    assert "beams" not in again
    expect(page.get_by_text("would repeat the same words")).to_have_count(1 if note else 0)
    if note:
        expect(page.get_by_text(f"Temperature 0.7 for this answer: {note}")).to_be_visible()


@pytest.mark.parametrize("device", [DESKTOP, PHONE])
def test_a_phone_reads_nothing_about_dropping_files(
    device: dict[str, Any], visit: Visit, scripted: ScriptedServer
) -> None:
    page = visit(**device)
    expect(page.get_by_text("Drop one here")).to_be_visible(visible=device is DESKTOP)
    expect(page.get_by_text("Add one below or take a photo.")).to_be_visible(visible=device is PHONE)


@pytest.mark.parametrize("tiny", [True, False])
def test_the_embedded_model_names_its_limits(tiny: bool, visit: Visit, tiny_url: str, scripted: ScriptedServer) -> None:
    page = visit(tiny_url if tiny else scripted.url)
    expect(page.get_by_text("of a photograph it invents an answer")).to_be_visible(visible=tiny)


def test_one_click_tasks_need_an_image(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    page.get_by_role("button", name="Tell a story").click()
    expect(page.locator(".notice")).to_contain_text("Add a picture first")
    show(page, image_file())
    page.get_by_role("button", name="Tell a story").click()
    answered(page, "You asked: Write a story about this picture.")
    page.get_by_role("button", name="Go on with the story").click()
    answered(page, "| Go on with the story.")


def test_boxes_are_drawn(visit: Visit, scripted: ScriptedServer, screenshot: Shoot) -> None:
    page = visit(**DESKTOP)
    show(page, VILLAGE)
    text = "<p>A red house</p> {<10><33><44><89>} stands on the left of <p>a green tree</p> {<56><26><91><84>}."
    scripted.on_word("[grounding]", [text[:30], 0.05, text[30:]])
    page.get_by_role("button", name="Describe with boxes").click()
    drawn = page.get_by_role("img", name="The picture with the boxes of the answer")
    expect(drawn).to_be_visible()
    assert answers(page).locator(".words").inner_text() == "A red house stands on the left of a green tree."
    marks = page.locator("mark").all()
    assert [m.evaluate("node => node.style.getPropertyValue('--own')") for m in marks] == ["#e6194b", "#3cb44b"]
    places = drawn.locator("g.box > rect:last-of-type").evaluate_all(
        "nodes => nodes.slice(0, 2).map(n => ['x', 'y', 'width', 'height'].map(a => Number(n.getAttribute(a))))"
    )
    size = drawn.evaluate("node => [node.viewBox.baseVal.width, node.viewBox.baseVal.height]")
    assert size[0] == 500
    assert places[0][0] == pytest.approx(0.10 * size[0], abs=2)
    assert places[0][2] == pytest.approx(0.34 * size[0], abs=2)
    assert drawn.locator("text").all_text_contents() == ["A red house", "a green tree"]
    page.locator("mark").first.hover()
    expect(drawn.locator("g.pointed")).to_have_count(2)  # outline and label
    page.mouse.move(5, 5)
    screenshot(page, "boxes")


def test_a_region_of_the_image_can_be_asked_about(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit(**DESKTOP)
    show(page, image_file())
    page.get_by_role("button", name="What is here?").click()
    area = page.locator(".mark").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + area["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.9, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Ask what is there").click()
    answered(page, "[identify] what is this")
    assert re.search(r"what is this \{<2[456]><(49|5[01])><7[456]><(89|9[01])>\}$", scripted.requests[-1].text)


def test_a_region_can_be_marked_by_keyboard(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit(**DESKTOP)
    show(page, image_file())
    page.get_by_role("button", name="What is here?").click()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Ask what is there").press("Enter")
    answered(page, "[identify] what is this")
    assert scripted.requests[-1].text.endswith("{<28><32><70><70>}")


def test_only_moved_sliders_are_sent(visit: Visit, scripted: ScriptedServer, screenshot: Shoot) -> None:
    page = visit(**DESKTOP)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("1.2")
    screenshot(page, "settings")
    page.keyboard.press("Escape")
    ask(page, "Hello")
    answered(page, "Hello")
    sent = scripted.requests[-1].body
    assert sent["temperature"] == 1.2
    assert not {"top_p", "max_tokens", "beams"} & sent.keys()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Beams").fill("3")
    expect(page.get_by_label("Temperature")).to_be_disabled()  # a beam search takes none
    page.keyboard.press("Escape")
    ask(page, "With beams")
    answered(page, "With beams")
    assert scripted.requests[-1].body["beams"] == 3
    assert "temperature" not in scripted.requests[-1].body
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Back to the model's defaults").click()
    page.keyboard.press("Escape")
    ask(page, "Hello again")
    answered(page, "Hello again")
    assert set(scripted.requests[-1].body) == {"model", "messages", "stream", "stream_options"}


def test_markdown_of_an_answer_is_laid_out(visit: Visit, scripted: ScriptedServer) -> None:
    text = (
        "## Soup\n\nA **quick** soup for *four*, with snake_case and 2 * 3 * 4.\n\n- onions\n  - red ones\n- salt\n\n"
        "3. Chop.\n4. Cook.\n\n> Enjoy!\n\n```py\nprint('<b>soup</b>')\n```\n\nUse `1 kg`.\nEnd."
    )
    scripted.on_word("recipe", [text[i : i + 7] for i in range(0, len(text), 7)])
    page = visit()
    ask(page, "the recipe")
    answered(page, "End.")
    said = answers(page).locator(".said")
    assert said.locator("h4").inner_text() == "Soup"
    assert said.locator("strong").all_inner_texts() == ["quick"]
    assert said.locator("em").all_inner_texts() == ["four"]
    assert said.locator("ul ul li").all_inner_texts() == ["red ones"]
    assert said.locator("ol").get_attribute("start") == "3"
    assert said.locator("blockquote").inner_text() == "Enjoy!"
    assert said.locator("pre code").inner_text() == "print('<b>soup</b>')"
    assert said.locator("p code").inner_text() == "1 kg"
    assert said.locator("p").all_inner_texts()[0] == "A quick soup for four, with snake_case and 2 * 3 * 4."
    expect(said.locator("b")).to_have_count(0)


def test_a_phone_in_dark_mode_can_use_the_page(visit: Visit, scripted: ScriptedServer, screenshot: Shoot) -> None:
    page = visit(color_scheme="dark", **PHONE)
    screenshot(page, "phone-dark-begin")
    show(page, image_file("red"), image_file("blue"))
    ask(page, "What is in these pictures?")
    answered(page, "I see red, blue.")
    screenshot(page, "phone-dark-chat")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    controls = page.locator("button:visible, textarea:visible").all()
    assert len(controls) >= 10
    for control in controls:
        size = control.bounding_box()
        assert size is not None
        assert min(size["width"], size["height"]) >= 24, control.inner_text()


def test_a_follow_up_costs_at_most_one_megabyte(visit: Visit, scripted: ScriptedServer) -> None:
    noise = Image.effect_noise((3000, 2250), 90).convert("RGB")  # worse than any photo
    page = visit()
    show(page, {"name": "noise.png", "mimeType": "image/png", "buffer": encode(noise, "JPEG", quality=95)})
    ask(page, "First")
    answered(page, "First")
    ask(page, "Second")
    answered(page, "First | Second")
    show(
        page,
        *(
            {"name": f"{n}.bmp", "mimeType": "image/bmp", "buffer": encode(noise.resize((900, 700)), "BMP")}
            for n in range(7)
        ),
    )
    ask(page, "Third")
    answered(page, "First | Second | Third")
    assert max(scripted.sizes) <= 1_000_000
    images = [Image.open(io.BytesIO(data)) for data in scripted.requests[-1].images]
    assert [image.format for image in images] == ["JPEG"] * 8
    assert max(max(image.size) for image in images) <= 2048
    assert scripted.requests[0].images[0] == scripted.requests[-1].images[0]  # nothing is encoded twice


def test_large_images_are_scaled_upright(visit: Visit, scripted: ScriptedServer) -> None:
    photo = Image.new("RGB", (3200, 1600), "blue")
    photo.paste("red", (0, 0, 1600, 1600))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    small = encode(photo.resize((64, 32)), "JPEG", exif=exif)
    page = visit()
    show(
        page,
        {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": encode(photo, "JPEG", exif=exif)},
        {"name": "small.jpg", "mimeType": "image/jpeg", "buffer": small},
    )
    ask(page, "What?")
    answered(page, "What?")
    sent, as_it_is = scripted.requests[-1].images
    large = Image.open(io.BytesIO(sent))
    assert large.size == (1024, 2048)
    assert large.getpixel((512, 200))[0] > 200  # what was on the left is on top
    assert not large.getexif()
    assert as_it_is == small


def test_nothing_jumps_while_an_answer_arrives(visit: Visit, scripted: ScriptedServer) -> None:
    website = "Here:\n```html\n<html><body><h1>Hello</h1></body></html>\n```\nMore words.\n\n" * 2
    scripted.on_word("long", [step for part in re.findall(r"\s*\S+", website * 2) for step in (part, 0.01)])
    page = visit(**DESKTOP)
    show(page, image_file())
    ask(page, "First")
    answered(page, "First")
    page.locator(".pictures img").evaluate("node => { node.kept = true; }")
    page.wait_for_timeout(600)  # shifts within half a second of an input don't count
    page.evaluate(
        "() => { window.shift = 0; new PerformanceObserver(list => { for (const e of list.getEntries()) "
        "if (!e.hadRecentInput) window.shift += e.value; }).observe({ type: 'layout-shift', buffered: false }); }"
    )
    ask(page, "a long one")
    answered(page, "More words.")
    page.wait_for_timeout(300)
    assert page.evaluate("window.shift") < 0.02
    assert page.locator(".pictures img").evaluate("node => node.kept")  # not built, nor decoded, again


def test_scrolling_up_is_left_alone(visit: Visit, scripted: ScriptedServer) -> None:
    gate = Gate()
    scripted.on_word("tall", ["line\n\n" * 60, gate, "the end"])
    page = visit(**DESKTOP)
    ask(page, "a tall one")
    expect(answers(page).locator(".words")).to_have_count(60)
    page.locator(".log").hover()
    page.mouse.wheel(0, -1500)
    expect(page.locator(".jump")).to_be_hidden()
    page.wait_for_timeout(300)
    before = page.locator(".log").evaluate("node => node.scrollTop")
    gate.open()
    answered(page, "the end")
    assert page.locator(".log").evaluate("node => node.scrollTop") == before
