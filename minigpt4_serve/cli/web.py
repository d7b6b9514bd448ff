"""``minigpt4 web``: ``serve``, with its page opened in a browser."""

import os
import sys
import threading
import webbrowser
from ipaddress import ip_address

import typer

from minigpt4_serve.cli.serve import (
    ConfigOption,
    HostOption,
    KeysFileOption,
    ModelOption,
    PortOption,
    read_settings,
    run_server,
)
from minigpt4_serve.cli.server_process import server_url
from minigpt4_serve.errors import InvalidRequest

__all__ = ["web"]


def web(
    model: ModelOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    keys_file: KeysFileOption = None,
) -> None:
    """Serve a model and open its chat page.

    Settings without an option go in the file of --config.
    """
    options = {"model": {"path": model} if model else None, "host": host, "port": port, "keys_file": keys_file}
    settings, overrides = read_settings(config, options)
    if not settings.page:
        raise InvalidRequest(f"{config} switches the page off (page: false); remove that line.", param="page")
    url = f"{server_url(settings.model_copy(update={'host': _browsable_host(settings.host)}))}/"

    def open_page(_: str) -> None:
        typer.echo(f"Open {url}   (Ctrl-C stops)")
        if _has_display():
            # A browser that is started this way may block until it is closed.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    run_server(settings, config, overrides, on_ready=open_page)


def _browsable_host(host: str) -> str:
    """The address for a browser on this machine of a server that listens on ``host``."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def _has_display() -> bool:
    """Whether a browser opens a window here, rather than taking over the terminal as text browsers do."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
