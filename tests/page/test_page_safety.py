"""What the page prevents: markup in what it shows, generated websites, other pages, people without a key."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_driving import answered, answers, ask, image_file, show
from page_serving import ScriptedServer, run_app, scripted_server
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.http.chat_service import ChatService
from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

Shoot = Callable[[Page, str], None]
Visit = Any

MARKUP = "<img src=x onerror=\"document.title='broken in'\">"
ANSWER = (
    f"Words with <b>tags</b>, {MARKUP}, <script>document.title='broken in'</script>, "
    "<a href='http://127.0.0.1:9/'>a</a> [a link](http://127.0.0.1:9/link) and ![a picture](http://127.0.0.1:9/outside.png)."
)


def test_markup_in_answers_and_questions_stays_text(visit: Visit, scripted: ScriptedServer) -> None:
    scripted.on_word("markup", [ANSWER])
    page = visit()
    ask(page, "markup please")
    answered(page, "[a link](http://127.0.0.1:9/link) and ![a picture](http://127.0.0.1:9/outside.png).")
    expect(answers(page).locator("img, script, b, a")).to_have_count(0)
    ask(page, MARKUP)
    answered(page, "onerror")
    expect(page.locator(".bubble").last).to_contain_text(MARKUP)
    expect(page.locator(".exchanges img")).to_have_count(0)
    scripted.on_word(
        "boxes", [f"<p>a thing</p> {{<1><2><30><40>}} {MARKUP.replace('<', '&lt;')} &lt;script&gt;1&lt;/script&gt;"]
    )
    show(page, image_file())
    ask(page, "boxes")
    expect(answers(page).last.locator(".said")).to_contain_text(f"{MARKUP} <script>1</script>")
    expect(page.locator(".answer img, .said script")).to_have_count(0)
    assert page.title() == "Talk to a picture"


def test_markup_in_file_names_and_errors_stays_text(visit: Visit, scripted: ScriptedServer) -> None:
    page = visit()
    file = {"name": f"{MARKUP}.png", "mimeType": "image/png", "buffer": b"nothing"}
    page.get_by_label("Pictures", exact=True).set_input_files([file])  # type: ignore[list-item]
    expect(page.locator(".notice")).to_contain_text(MARKUP)
    expect(page.locator(".notice img")).to_have_count(0)
    scripted.failures.append(InvalidRequest(f"It says {MARKUP}."))
    ask(page, "Hello")
    expect(answers(page).locator(".problem")).to_have_text(f"It says {MARKUP}.")
    expect(answers(page).locator("img")).to_have_count(0)
    assert page.title() == "Talk to a picture"


def test_a_generated_website_reaches_nothing(visit: Visit, scripted: ScriptedServer, screenshot: Shoot) -> None:
    visit.expected = ("",)  # Chromium reports each attempt
    with _spy() as (address, received):
        scripted.on_word("website", [_website(address, scripted.url)])
        page = visit(viewport={"width": 1280, "height": 900})
        page.evaluate("document.cookie = 'secret=1'")
        ask(page, "a website please")
        frame = page.frame_locator("iframe")
        frame.get_by_role("button", name="Punchline").click()
        expect(frame.get_by_text("To keep an eye on the mouse.")).to_be_visible()  # its own script runs
        expect(frame.locator("#tried")).to_have_text(
            "parent refused, top refused, storage refused, cookie refused, database refused, popup refused, "
            "peer refused, fetch refused, api refused, worker refused, form refused"
        )
        screenshot(page, "website")
        frame.get_by_role("link", name="Leave").click()
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Code").click()
        expect(page.locator(".website pre")).to_contain_text("<h1>My joke website</h1>")
        assert page.title() == "Talk to a picture"
        assert received == []
    assert len(scripted.requests) == 1


def test_a_generated_website_cannot_lead_its_frame_away(visit: Visit, scripted: ScriptedServer) -> None:
    visit.expected = ("",)  # Chromium reports each attempt
    with _spy() as (address, received):
        for way in (
            f"<meta http-equiv=refresh content='0;url={address}/refresh'>",
            f"<script>location.href = '{address}/location'</script>",
            f"<script>document.write('<iframe src={address}/frame></iframe>')</script>",
            f"<link rel=prefetch href={address}/prefetch><link rel=preconnect href={address}>",
            f"<body onload=\"document.body.innerHTML = '<object data={address}/o></object><embed src={address}/e>'\">",
        ):
            scripted.on_word("website", [f"<html>{way}<p>Shown</p></html>"])
            page = visit()
            ask(page, "a website please")
            page.locator("iframe").wait_for()
            page.wait_for_timeout(1000)
            page.context.close()
        assert received == []


_FRAME = (
    "<iframe srcdoc=\"<script>[...top.frames].forEach((frame) => frame.postMessage('nested', '*'))</script>\"></iframe>"
)
_SCRIPTED = "`" + _FRAME.replace("</script>", "<\\/script>") + "`"


def test_a_generated_website_holds_no_frames(visit: Visit, scripted: ScriptedServer) -> None:
    """A frame would have the peer connections that were taken away."""
    visit.expected = ("",)  # Chromium reports each attempt
    ways = (
        _FRAME,
        f"{_FRAME}<script>const began = Date.now(); while (Date.now() - began < 1000);</script>",
        f"<script>document.body.innerHTML += {_SCRIPTED}</script>",
        f"<div><template shadowrootmode=open>{_FRAME}</template></div>",
        f"<div id=host></div><script>host.attachShadow({{ mode: 'open' }}).innerHTML = {_SCRIPTED}</script>",
        f"<div id=host></div><script>host.setHTMLUnsafe({_SCRIPTED})</script>",
    )
    page = visit()
    for number, way in enumerate(ways):
        script = (
            "<p id=received>nothing</p><script>onmessage = (event) => { received.textContent = event.data; }</script>"
        )
        scripted.on_word("website", [f"<html>{script}{way}<p>Shown {number}</p></html>"])
        ask(page, "a website please")
        frame = page.frame_locator("iframe").nth(number)
        expect(frame.get_by_text(f"Shown {number}")).to_be_visible()
        page.wait_for_timeout(500)
        expect(frame.locator("#received")).to_have_text("nothing")


def test_the_preview_document_takes_messages_of_its_page_only(visit: Visit, scripted: ScriptedServer) -> None:
    visit.expected = ("",)  # Chromium reports each attempt
    visit.own += ("http://evil.example:",)
    page = visit()
    popup = page.context.new_page()
    popup.goto(f"{scripted.url}preview")
    popup.evaluate("window.postMessage('<h1>Taken over</h1>', '*')")
    popup.wait_for_timeout(300)
    expect(popup.locator("h1")).to_have_count(0)
    assert popup.evaluate("self.origin") == "null"
    stranger = Starlette(routes=[Route("/", lambda _: HTMLResponse(f"<iframe src='{scripted.url}preview'></iframe>"))])
    with run_app(stranger) as url:
        page.goto(url.replace("127.0.0.1", "evil.example"))
        page.wait_for_timeout(500)
        assert page.frames[-1].url.startswith("chrome-error:")


PATHS = ("", "page/main.js", "page/style.css", "preview", "v1/models", "docs")


@pytest.mark.parametrize("path", PATHS)
def test_other_names_and_other_pages_are_refused(scripted_session: ScriptedServer, path: str) -> None:
    url = scripted_session.url + path
    assert httpx.get(url).status_code == 200
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        refused = httpx.get(url, headers=headers)
        assert refused.status_code == 401, headers
        assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_rebound_name_shows_no_page(visit: Visit, scripted: ScriptedServer) -> None:
    visit.own += ("http://evil.example:",)
    page = visit()
    visit.urls.clear()
    page.goto(scripted.url.replace("127.0.0.1", "evil.example"))
    assert "This server has no API keys, so it accepts only requests from its own machine" in page.content()
    assert visit.urls == {scripted.url.replace("127.0.0.1", "evil.example")}


def test_other_pages_can_neither_ask_nor_embed(visit: Visit, scripted: ScriptedServer) -> None:
    visit.expected = ("",)  # Chromium reports each attempt
    visit.own += ("http://evil.example:",)

    async def attack(_: Request) -> HTMLResponse:
        return HTMLResponse(
            f"""<iframe src="{scripted.url}"></iframe><script src="{scripted.url}page/tasks.js"></script>
            <script>
            const body = JSON.stringify({{ messages: [{{ role: "user", content: "attack" }}] }});
            const ways = [fetch("{scripted.url}v1/chat/completions", {{ method: "POST", mode: "no-cors", body }}),
              fetch("{scripted.url}v1/models").then((r) => r.text())];
            Promise.allSettled(ways).then((all) => {{ document.title = all.map((one) => one.status).join(); }});
            </script>"""
        )

    with run_app(Starlette(routes=[Route("/", attack)])) as url:
        page = visit()
        page.goto(url.replace("127.0.0.1", "evil.example"))
        for _ in range(100):
            if "rejected" in page.title():
                break
            page.wait_for_timeout(100)
        assert page.title() == "fulfilled,rejected"  # the first is opaque: sent, and refused
        assert page.frames[1].url.startswith("chrome-error:")
    assert scripted.requests == []


def test_a_key_is_asked_for_and_kept_for_the_tab(
    visit: Visit, tiny_service: ChatService, scripted: ScriptedServer, screenshot: Shoot, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "guest", KeyLimits())
    with scripted_server(tiny_service, keys_file=file) as server:
        page = visit(server.url, model="", viewport={"width": 1280, "height": 800})
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This server needs a key")
        expect(page.get_by_label("API key")).to_be_focused()
        screenshot(page, "key")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("The server does not accept this key.")
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator(".model")).to_have_text("minigpt4-scripted")
        ask(page, "Hello")
        answered(page, "You asked: Hello")
        page.reload()
        expect(page.locator(".model")).to_have_text("minigpt4-scripted")
        assert key not in page.evaluate("JSON.stringify([{ ...localStorage }, document.cookie, location.href])")
        other = visit.open_tab(page.context, server.url, model="")
        expect(other.get_by_role("dialog")).to_contain_text("This server needs a key")
        other.keyboard.press("Escape")
        other.wait_for_timeout(3500)
        expect(other.get_by_role("dialog")).to_have_count(0)  # it isn't asked for again and again
        ask(other, "Hello")
        expect(answers(other).last.locator(".problem")).to_have_text("This server needs a key.")
        expect(other.get_by_role("dialog")).to_be_visible()
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="Forget the key of this tab").click()
        expect(page.get_by_role("dialog")).to_contain_text("This server needs a key")


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


def _website(address: str, api: str) -> str:
    return f"""Here it is:
```html
<!doctype html><html><body style="font-family: sans-serif; padding: 1rem"><h1>My joke website</h1>
<p>Why did the cat sit on the keyboard?</p>
<button onclick="punch.textContent = 'To keep an eye on the mouse.'">Punchline</button>
<p id="punch"></p><p id="tried" hidden></p>
<a href="{address}/link">Leave</a> <img src="{address}/image.png" width="1" alt="">
<link rel="stylesheet" href="{address}/style.css"><script src="{address}/script.js"></script>
<form action="{address}/form"><input name="a"></form>
<script>
const tried = [];
function attempt(name, act) {{
  try {{ tried.push(name + (act() ? " open" : " refused")); }} catch {{ tried.push(name + " refused"); }}
}}
attempt("parent", () => {{ parent.document.title = "broken in"; return true; }});
attempt("top", () => {{ top.location.href = "{address}/top"; return true; }});
attempt("storage", () => localStorage.length >= 0);
attempt("cookie", () => document.cookie.includes("secret"));
attempt("database", () => indexedDB.open("minigpt4") !== null);
attempt("popup", () => window.open("{address}/popup") !== null);
attempt("peer", () => new RTCPeerConnection() !== null);
const later = (name, promise) => promise.then(() => tried.push(name + " open"), () => tried.push(name + " refused"));
(async () => {{
  await later("fetch", fetch("{address}/fetch"));
  await later("api", fetch("{api}v1/models"));
  await later("worker", new Promise((resolve, reject) => {{
    const worker = new Worker(URL.createObjectURL(new Blob(["postMessage(1)"])));
    worker.onmessage = resolve;
    worker.onerror = reject;
  }}));
  document.forms[0].submit();
  tried.push("form refused");
  navigator.sendBeacon("{address}/beacon", "x");
  document.getElementById("tried").textContent = tried.join(", ");
}})();
</script></body></html>
```
"""
