"""``minigpt4 web``: the page, with a server of its own if none is given."""

import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from minigpt4_serve.cli.console import Step
from minigpt4_serve.cli.options import MODEL_VARIABLE, KeyOption, ModelOption, ServerOption
from minigpt4_serve.cli.server_process import StopSignal, handle_stop_signals, server_url, start_server, stop_server
from minigpt4_serve.settings import TINY_MODEL

__all__ = ["web"]


def web(
    server: ServerOption = None,
    api_key: KeyOption = None,
    model: ModelOption = TINY_MODEL,
    host: Annotated[str, typer.Option(help="Address that the page listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 takes a free one.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            help="Asked of everybody who opens the page; needed for any --host but this machine.",
            envvar="MINIGPT4_WEB_PASSWORD",
            show_envvar=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Open a page to talk to a picture. Without --server it starts one itself, and stops it at the end."""
    from pydantic import SecretStr

    from minigpt4_serve.web import PageSettings, listen, serve_page

    page = PageSettings(
        server_url=server or "",
        api_key=SecretStr(api_key) if api_key else None,
        model=os.environ.get(MODEL_VARIABLE) if server else None,
        host=host,
        port=port,
        password=SecretStr(password) if password else None,
    )
    with ExitStack() as ending:
        listening = ending.enter_context(listen(page))
        handle_stop_signals()
        if server is None:
            page = page.model_copy(update={"server_url": _start_own_server(model, api_key, ending)})
        loading = ending.enter_context(ExitStack())
        loading.enter_context(Step("loading the page"))

        def ready(url: str) -> None:
            loading.close()
            typer.echo(f"Open {url}   (Ctrl-C stops)")

        with suppress(StopSignal):
            serve_page(page, listening, on_ready=ready)
        typer.echo()


def _start_own_server(model: Path, api_key: str | None, ending: ExitStack) -> str:
    """The address of a server on a free port of this machine; ``ending`` stops it."""
    from pydantic import SecretStr

    from minigpt4_serve.settings import ModelSettings, ServeSettings

    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    key = SecretStr(api_key) if api_key else None
    settings = ServeSettings(model=ModelSettings(path=model), port=free, api_key=key, log_level="warning")
    ending.callback(stop_server, start_server(settings))
    typer.echo(f"The server: {server_url(settings)}/v1")
    return server_url(settings)
