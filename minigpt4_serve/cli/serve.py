"""``minigpt4 serve``: runs the server until a signal stops it."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4_serve.cli.console import Step
from minigpt4_serve.cli.server_process import HangUps, StopSignal, running_server, server_url
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error

if TYPE_CHECKING:
    from minigpt4_serve.server.ray.local_server import LocalServer
    from minigpt4_serve.settings import ServeSettings

__all__ = [
    "ConfigOption",
    "HostOption",
    "KeysFileOption",
    "ModelOption",
    "PortOption",
    "read_settings",
    "run_server",
    "serve",
]

_RESTART_REQUIRED = ("host", "port", "metrics_port")
"""Settings that can't be changed while the server runs."""

ModelOption = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="The model's folder.", show_default="the embedded model")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in YAML; options override them.")
]
HostOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Address to listen on.", show_default="127.0.0.1")
]
PortOption = Annotated[
    int | None, typer.Option(metavar="PORT", help="Port to listen on.", min=1, max=65535, show_default="8000")
]
KeysFileOption = Annotated[
    Path | None,
    typer.Option(
        "--keys-file", metavar="FILE", help="API keys of the server; see 'minigpt4 keys'.", show_default=False
    ),
]


def serve(
    model: ModelOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="The model's name in the API; may be given several times.", show_default="the folder's"
        ),
    ] = None,
    keys_file: KeysFileOption = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch pictures of this host over https, '*' of every public one; may be given several times.",
            show_default="none",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="Lowest level to log: debug, info, warning or error.", show_default="info"),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show the load of the server at --host and --port; start none.")
    ] = False,
) -> None:
    """Serve a model over an OpenAI-compatible API.

    On SIGHUP, rereads the settings and replaces the processes one by one; requests wait if there is only one process.
    """
    options = {
        "model": {"path": model} if model else None,
        "host": host,
        "port": port,
        "model_name": tuple(model_name) if model_name else None,
        "keys_file": keys_file,
        "allowed_hosts": tuple(allow_host) if allow_host else None,
        "log_level": log_level,
    }
    settings, overrides = read_settings(config, options)
    if status:
        from minigpt4_serve.cli.status import follow

        follow(server_url(settings), settings.api_key.get_secret_value() if settings.api_key else None)
        return
    run_server(settings, config, overrides, on_ready=lambda url: typer.echo(f"Ready: {url}   (Ctrl-C stops)"))


def read_settings(config: Path | None, options: dict[str, Any]) -> tuple["ServeSettings", dict[str, Any]]:
    """The settings of a file and of the options that were given (not None), and those options.

    Raises:
        InvalidRequest: the file can't be read, or a setting is invalid.
    """
    from minigpt4_serve.settings import read_serve_settings

    overrides = {name: value for name, value in options.items() if value is not None}
    return read_serve_settings(config, overrides), overrides


def run_server(
    settings: "ServeSettings", config: Path | None, overrides: dict[str, Any], *, on_ready: Callable[[str], None]
) -> None:
    """Serve until a signal stops it. SIGHUP rereads ``config``.

    Args:
        on_ready: called with the server's address once it answers.

    Raises:
        MiniGPT4Error: the server can't start.
    """
    with suppress(StopSignal), running_server(settings) as server:
        hang_ups = HangUps(server)
        on_ready(server_url(settings))
        while True:
            hang_ups.wait()
            _roll_over(server, settings, config, overrides)


def _roll_over(server: "LocalServer", running: "ServeSettings", config: Path | None, overrides: dict[str, Any]) -> None:
    """Deploy new settings to a running server, unless they are invalid or require a restart."""
    from minigpt4_serve.server.start_checks import check_settings
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
