"""The page as a Gradio app around one server: events and sessions by Gradio, pictures by two routes in memory.

The only module that imports Gradio. It takes no files, sends nothing to anybody, and asks nothing from outside.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

# Read by Gradio when it is imported: nothing is reported to its makers, whoever started us.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ValidationError

from minigpt4_serve.client.chat_client import ChatClient
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import ImageLimits
from minigpt4_serve.web.door import Door
from minigpt4_serve.web.pictures import Shelf
from minigpt4_serve.web.settings import PageSettings
from minigpt4_serve.web.talk import Options, Question, Talk
from minigpt4_serve.web.tasks import EXAMPLES, EXAMPLES_FOLDER
from minigpt4_serve.web.view import static_view, view

__all__ = ["create_page"]

_HERE = Path(__file__).parent
_View = dict[str, Any]
_Keywords = dict[str, Any]


def create_page(settings: PageSettings) -> FastAPI:
    """The whole page as an ASGI application.

    Raises:
        InvalidRequest: the server's address isn't one.
    """
    server = ChatClient(settings.server_url, settings.api_key, model=settings.model)
    shelf = Shelf(ImageLimits(max_bytes=settings.max_picture_bytes))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await server.aclose()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _add_picture_routes(app, shelf)
    gr.mount_gradio_app(
        app,
        _blocks(server, shelf),
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=_HERE / "page.css",
        favicon_path=str(EXAMPLES_FOLDER / "icon.png"),
    )
    app.add_middleware(Door, password=settings.password)
    return app


def _blocks(server: ChatClient, shelf: Shelf) -> gr.Blocks:
    """One component that our own script fills, and the events it sends."""

    async def look(talk: Talk, request: gr.Request) -> tuple[_View, Talk]:
        talk.session = request.session_hash or ""
        await talk.look(server)
        return view(talk, server), talk

    async def ask(talk: Talk, event: gr.EventData) -> AsyncGenerator[tuple[_View, Talk]]:
        question = _read(Question, event)
        async with aclosing(talk.ask(server, shelf, question)) as news:
            async for _ in news:
                yield view(talk, server), talk
        yield view(talk, server), talk

    async def ask_again(talk: Talk, event: gr.EventData) -> AsyncGenerator[tuple[_View, Talk]]:
        options = _read(Options, event)
        async with aclosing(talk.ask_again(server, shelf, options)) as news:
            async for _ in news:
                yield view(talk, server), talk
        yield view(talk, server), talk

    async def stop(talk: Talk) -> _View:
        talk.stop()
        return view(talk, server)

    async def start_over(talk: Talk) -> _View:
        talk.start_over()
        return view(talk, server)

    def forget(talk: Talk) -> None:
        # Gradio forgets its own value only; the session remembers what was shown last.
        blocks.state_holder.session_data.pop(talk.session, None)

    with gr.Blocks(title="Talk to a picture", analytics_enabled=False, fill_width=True) as blocks:
        talk = gr.State(Talk, delete_callback=forget)
        page = gr.HTML(
            view(Talk(), server),
            html_template="",
            js_on_load=_script(),
            apply_default_css=False,
            elem_id="talk",
            fixed=static_view(shelf.limits.max_bytes),
        )
        # The talk is an output as well: Gradio's clock for forgetting it begins anew whenever it is used.
        # Every chat streams at once: the server behind us is who admits and refuses.
        streaming: _Keywords = {"inputs": talk, "outputs": [page, talk], "concurrency_limit": None}
        quick: _Keywords = {"inputs": talk, "queue": False}
        quiet: _Keywords = {"show_progress": "hidden", "api_visibility": "private"}
        blocks.load(look, talk, [page, talk], queue=False, **quiet)
        page.tick(look, outputs=[page, talk], **quick, **quiet)
        page.submit(ask, **streaming, **quiet)
        page.retry(ask_again, **streaming, **quiet)
        page.stop(stop, outputs=page, **quick, **quiet)
        page.clear(start_over, outputs=page, **quick, **quiet)
    return cast(gr.Blocks, blocks)


_Sent = TypeVar("_Sent", bound=BaseModel)


def _read(kind: type[_Sent], event: gr.EventData) -> _Sent:
    """What our script sent, or somebody in its name."""
    try:
        return kind.model_validate(event._data)
    except ValidationError as error:
        raise InvalidRequest("The page can't understand what was sent.") from error


def _script() -> str:
    """Our own script, in the order in which its parts build on each other."""
    parts = ("elements", "settings", "composer", "talk", "page")
    return "\n".join((_HERE / "script" / f"{part}.js").read_text(encoding="utf-8") for part in parts)


def _add_picture_routes(app: FastAPI, shelf: Shelf) -> None:
    @app.post("/pictures")
    async def put(request: Request) -> Response:
        """One picture, as the request's body. Never on a disk, unlike Gradio's own uploads."""
        # A type that no plain form of another site can send: browsers then ask us first, and we don't agree.
        if request.headers.get("content-type") != "application/octet-stream":
            return _refusal(InvalidRequest("Pictures are sent as application/octet-stream."))
        try:
            data = await _body(request, shelf.limits.max_bytes)
            shown = await asyncio.to_thread(shelf.put, data)
        except MiniGPT4Error as error:
            return _refusal(error)
        return JSONResponse({"key": shown.key, "width": shown.width, "height": shown.height})

    @app.get("/pictures/{key}")
    async def get(key: str) -> Response:
        """What the page shows of a picture."""
        shown = shelf.get(key)
        if shown is None:
            return Response(status_code=404)
        return Response(shown.preview, media_type="image/webp", headers={"cache-control": "no-store"})

    @app.get("/examples/{name}")
    async def example(name: str) -> Response:
        """A picture that ships with the page."""
        if name not in {one.picture for one in EXAMPLES}:
            return Response(status_code=404)
        return FileResponse(EXAMPLES_FOLDER / name, headers={"cache-control": "max-age=3600"})


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise PayloadTooLarge(f"This file has more than {limit / 2**20:.0f} MiB. Choose a smaller one.")
    return bytes(body)


def _refusal(error: MiniGPT4Error) -> Response:
    return JSONResponse(error.body(), status_code=error.status)
