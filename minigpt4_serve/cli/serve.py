"""``minigpt4 serve``: runs the server until a signal stops it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4_serve.cli.console import Step
from minigpt4_serve.cli.server_process import HangUps, StopSignal, server_url, start_server, stop_server
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error

if TYPE_CHECKING:
    from minigpt4_serve.server.ray.local_server import LocalServer
    from minigpt4_serve.settings import ServeSettings

__all__ = ["serve"]

_RESTART_REQUIRED = ("host", "port", "metrics_port")
"""Settings that can't be changed while the server runs."""


def serve(
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", show_default="the embedded model")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML settings; command-line options override them.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, show_default="8000")] = None,
    model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name that clients use; may be given several times.", show_default="the folder's"),
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            "--keys-file",
            metavar="FILE",
            help="API keys that may use the server; see 'minigpt4 keys'.",
            show_default=False,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch pictures of this host over https, '*' of every public one; may be given several times.",
            show_default="none",
        ),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.", show_default="info")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Watch the server at --host and --port; start none.")
    ] = False,
) -> None:
    """Serve the model over an OpenAI-compatible HTTP API, on Ray Serve.

    On SIGHUP, rereads the settings and replaces the processes one by one; requests wait if there is only one process.
    """
    from minigpt4_serve.settings import read_serve_settings

    options = {
        "model": {"path": model} if model else None,
        "host": host,
        "port": port,
        "model_name": tuple(model_name) if model_name else None,
        "keys_file": keys_file,
        "allowed_hosts": tuple(allow_host) if allow_host else None,
        "log_level": log_level,
    }
    overrides = {name: value for name, value in options.items() if value is not None}
    settings = read_serve_settings(config, overrides)
    if status:
        from minigpt4_serve.cli.status import follow

        follow(server_url(settings), settings.api_key.get_secret_value() if settings.api_key else None)
        return
    server = start_server(settings)
    try:
        hang_ups = HangUps()
        typer.echo(f"Ready: {server_url(settings)}   (Ctrl-C stops)")
        while True:
            hang_ups.wait()
            _roll_over(server, settings, config, overrides)
    except StopSignal:
        pass
    finally:
        stop_server(server)


def _roll_over(server: "LocalServer", running: "ServeSettings", config: Path | None, overrides: dict[str, Any]) -> None:
    """Deploy new settings to a running server, unless they are invalid or require a restart."""
    from minigpt4_serve.server.ray.local_server import check_settings
    from minigpt4_serve.settings import read_serve_settings

    try:
        settings = read_serve_settings(config, overrides)
        for name in _RESTART_REQUIRED:
            if getattr(settings, name) != getattr(running, name):
                raise InvalidRequest(f"Changing '{name}' requires a restart.", param=name)
        check_settings(settings)
    except MiniGPT4Error as error:
        typer.echo(f"minigpt4: {error.message} Keeping the current settings.", err=True)
        return
    try:
        with Step("replacing the processes, one by one"):
            server.deploy(settings)
    except MiniGPT4Error as error:
        typer.echo(f"minigpt4: {error.message} Correct the settings and send SIGHUP again.", err=True)
    else:
        typer.echo("Ready again with the new settings.")
