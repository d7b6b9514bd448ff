"""A running server as a table that moves: engines, lines, rates. Asks over HTTP; loads neither torch nor Ray.

The numbers are the engines' own counters; rates are differences between two looks.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from minigpt4_serve.errors import AuthenticationFailed, ServerUnreachable

__all__ = ["draw", "look", "watch"]

_EVERY_S = 2.0

Look = Mapping[str, Any]
"""What ``GET /status`` says, and ``at``, the second when it was asked."""


def look(base_url: str, api_key: str | None) -> Look:
    """Ask the server once.

    Raises:
        AuthenticationFailed: it wants a key, or another one.
        ServerUnreachable: nobody answers there, or not as this server does.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{base_url}/status", headers=headers)  # noqa: S310  # http, by our own settings
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return {**json.load(answer), "at": time.monotonic()}
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            raise AuthenticationFailed("The server wants its key: set MINIGPT4_API_KEY.") from error
        raise ServerUnreachable(f"What runs at {base_url} is not this server, or it is not well.") from error
    except (OSError, ValueError) as error:
        raise ServerUnreachable(f"Nobody answers at {base_url}. Start a server: minigpt4 serve") from error


def draw(now: Look, before: Look | None = None) -> Table:
    """One row for each engine, and their sum; rates only if there was a look before."""
    table = Table(title=f"{now['model']}: {len(now['engines'])} engines", title_justify="left", title_style="bold")
    for name in ("engine", "running", "waiting", "KV cache", "tokens/s", "answers/s", "cached", "pictures known"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    earlier = {} if before is None else {engine["name"]: engine for engine in before["engines"]}
    seconds = now["at"] - before["at"] if before is not None else 0.0
    for engine in now["engines"]:
        table.add_row(engine["name"], *_cells(engine, earlier.get(engine["name"]), seconds))
    if len(now["engines"]) > 1:
        table.add_section()
        known = all(engine["name"] in earlier for engine in now["engines"])
        past = _sum([earlier[engine["name"]] for engine in now["engines"]]) if known else None
        table.add_row("all", *_cells(_sum(now["engines"]), past, seconds))
    return table


def _sum(engines: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: sum(engine[name] for engine in engines) for name in engines[0] if name != "name"}


def _cells(engine: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> list[str]:
    def rate(name: str) -> str:
        return f"{(engine[name] - before[name]) / seconds:.1f}" if before is not None and seconds else "…"

    read = engine["cached_tokens"] + engine["prefill_tokens"]
    pictures = engine["image_hits"] + engine["image_decodes"]
    return [
        str(engine["running"]),
        str(engine["waiting"]),
        f"{engine['blocks_held'] / engine['blocks_total']:.0%}",
        rate("generated_tokens"),
        rate("requests"),
        f"{engine['cached_tokens'] / read:.0%}" if read else "…",
        f"{engine['image_hits'] / pictures:.0%}" if pictures else "…",
    ]


def watch(base_url: str, api_key: str | None) -> None:
    """Draw until Ctrl-C; once and done where the output is no terminal.

    Raises:
        AuthenticationFailed, ServerUnreachable: as ``look``, the first time; later it waits for the server to return.
    """
    console = Console()
    before = look(base_url, api_key)
    if not console.is_terminal:
        console.print(draw(before))
        return
    with Live(draw(before), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_EVERY_S)
                try:
                    now = look(base_url, api_key)
                except ServerUnreachable as error:
                    live.update(error.message, refresh=True)
                    continue
                live.update(draw(now, before), refresh=True)
                before = now
        except KeyboardInterrupt:
            return
