"""``minigpt4-mcp``: settings from the command line and the environment, then the server on stdio or HTTP."""

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from minigpt4_serve.client import PictureSources, VisionClient
from minigpt4_serve.errors import MiniGPT4Error

__all__ = ["main"]


class Transport(StrEnum):
    """How clients reach the server."""

    STDIO = "stdio"
    HTTP = "http"


_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    transport: Annotated[Transport, typer.Option(help="http serves at /mcp.")] = Transport.STDIO,
    host: Annotated[str, typer.Option(help="A loopback address, for http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="For http.")] = 8001,
) -> None:
    """Give MCP clients eyes: the tool look_at_pictures, answered by an OpenAI-compatible vision server.

    The server's key, if it wants one, is read from MINIGPT4_API_KEY. On stdio the client's roots are allowed folders,
    too.
    """
    from mcp_minigpt4.server import create_server

    if transport is Transport.HTTP and not _is_loopback(host):
        typer.echo(
            f"There is no key for this server, so it listens on this machine only, not on {host}. "
            "Put a proxy that asks for one in front of it.",
            err=True,
        )
        raise typer.Exit(2)
    try:
        client = VisionClient(base_url, model=model)
    except MiniGPT4Error as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    sources = PictureSources(tuple(folder or ()), tuple(allow_host) if allow_host else allow_urls)
    server = create_server(client, sources, trust_roots=transport is Transport.STDIO)
    if transport is Transport.STDIO:
        server.run("stdio")
    else:
        server.run("streamable-http", host=host, port=port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> None:
    """The command line's entry."""
    _app()
