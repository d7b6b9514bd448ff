"""``minigpt4 keys``: make, show and revoke the API keys of a server."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt4_serve.settings import KEYS_FILE_VARIABLE

__all__ = ["keys"]

keys = typer.Typer(
    help="Make, list and revoke API keys.\n\nA running server applies changes within seconds.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FileOption = Annotated[
    Path, typer.Option("--keys-file", metavar="FILE", envvar=KEYS_FILE_VARIABLE, help="The server's keys file.")
]
Limit = Annotated[int | None, typer.Option(min=1, show_default="no limit")]


@keys.command()
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose key it is, for your own list.", show_default=False)
    ],
    keys_file: FileOption = Path("minigpt4-keys.json"),
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="Most requests per minute.", min=1, show_default="no limit")
    ] = None,
    concurrent_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Most requests at the same time.", min=1, show_default="no limit")
    ] = None,
    images_per_day: Annotated[
        int | None, typer.Option(metavar="N", help="Most pictures per day.", min=0, show_default="no limit")
    ] = None,
) -> None:
    """Make a key.

    It is printed once, and only its hash is kept.

    Example: minigpt4 keys add alice --requests-per-minute 60 --images-per-day 1000
    """
    from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key

    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        concurrent_requests=concurrent_requests,
        images_per_day=images_per_day,
    )
    key = add_key(keys_file, name, limits)
    typer.echo(f"The key of {name}, shown only now; {keys_file} holds its hash:", err=True)
    typer.echo(key)


@keys.command("list")
def show(keys_file: FileOption = Path("minigpt4-keys.json")) -> None:
    """List the names and limits of all keys.

    The keys themselves are not stored.
    """
    from minigpt4_serve.server.keys.key_ring import read_keys

    rows: list[tuple[str, ...]] = [("NAME", "ID", "CREATED", "REQUESTS/MIN", "CONCURRENT", "IMAGES/DAY")]
    for key in read_keys(keys_file):
        limits = (key.limits.requests_per_minute, key.limits.concurrent_requests, key.limits.images_per_day)
        shown = ("–" if limit is None else str(limit) for limit in limits)
        rows.append((key.name, key.id, f"{key.created:%Y-%m-%d}", *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME|ID", help="One of 'minigpt4 keys list'.", show_default=False)],
    keys_file: FileOption = Path("minigpt4-keys.json"),
) -> None:
    """Revoke a key.

    Requests in progress are finished.
    """
    from minigpt4_serve.server.keys.key_ring import revoke_key

    key = revoke_key(keys_file, name)
    typer.echo(f"The key of {key.name} ({key.id}) is no longer valid; running servers refuse it within seconds.")
