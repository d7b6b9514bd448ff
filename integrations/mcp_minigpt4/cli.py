"""``minigpt4-mcp``: settings from the command line and the environment, then the server on stdio or HTTP.

Standard output belongs to the protocol: messages for people go to standard error.
"""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from minigpt4_serve.entry_point import run_program
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings import is_loopback

__all__ = ["main"]

_SESSION_IDLE_S = 1800.0
"""A session without requests for this long ends; its client begins another."""
_MAX_SESSIONS = 500
"""Sessions over HTTP at a time; a further client is refused with status 503."""


class Transport(StrEnum):
    """The transport between clients and this server."""

    STDIO = "stdio"
    HTTP = "http"
    STREAMABLE_HTTP = "streamable-http"
    """The same, as the SDK spells it."""


_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@_app.command()
def serve(
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="MINIGPT4_BASE_URL", help="Vision server, usually ending in /v1. [http://127.0.0.1:8000/v1]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The server's only model if not given.")] = None,
    folder: Annotated[list[Path] | None, typer.Option(help="Allow pictures in and below it; may be repeated.")] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from public https addresses.")
    ] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Fetch only from this host; may be repeated.")] = None,
    transport: Annotated[
        Transport, typer.Option(help="http and streamable-http are the same; served at /mcp.")
    ] = Transport.STDIO,
    host: Annotated[str, typer.Option(help="A loopback address, for http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="For http.")] = 8001,
) -> None:
    """Give MCP clients eyes: the tool look_at_pictures, answered by an OpenAI-compatible vision server.

    The server's key, if it wants one, is read from MINIGPT4_API_KEY. On stdio, the client's roots are allowed folders.
    """
    on_stdio = transport is Transport.STDIO
    if not on_stdio and not is_loopback(host):
        raise InvalidRequest(
            f"There is no key for this server, so it listens on this machine only, not on {host}. "
            "Put a proxy that asks for one in front of it."
        )
    from mcp_minigpt4.server import create_server
    from minigpt4_serve.client import PictureSources, VisionClient

    client = VisionClient(base_url, model=model)
    sources = PictureSources(tuple(folder or ()), tuple(allow_host) if allow_host else allow_urls)
    server = create_server(client, sources, trust_roots=on_stdio)
    if on_stdio:
        if sys.stdin.isatty():
            typer.echo("An MCP client should start this command and speak to it here. (Ctrl-C ends it.)", err=True)
        # The SDK's reader waits in a thread that no exception reaches: without this, Ctrl-C would wait for a line.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        server.run("stdio")
    else:
        address = f"[{host}]" if ":" in host else host
        typer.echo(f"MCP server for {client.base_url} at http://{address}:{port}/mcp   (Ctrl-C stops)", err=True)
        server.run(
            "streamable-http",
            host=host,
            port=port,
            session_idle_timeout=_SESSION_IDLE_S,
            max_sessions=_MAX_SESSIONS,
        )


def main() -> None:
    """The console script ``minigpt4-mcp``; exit codes as ``minigpt4_serve.entry_point``."""
    run_program("minigpt4-mcp", _app, dict.fromkeys(("mcp", "mcp_types", "httpx"), "mcp"))
