"""``minigpt4 serve --status``: a live table of a running server's engines, read over HTTP without torch or Ray.

The numbers come from the engines' own counters; rates are computed from two consecutive responses.
"""

import time
from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import SecretStr
from rich.console import Console
from rich.live import Live
from rich.table import Table

from minigpt4_serve.cli.options import describe_key_refusal
from minigpt4_serve.client.connection import check_key, make_http_client
from minigpt4_serve.errors import AuthenticationFailed, ServerUnreachable

__all__ = ["fetch", "follow", "render"]

_REFRESH_INTERVAL_S = 2.0
_TIMEOUT_S = 10.0
_SHOWN = {
    *("name", "running", "waiting", "blocks_held", "blocks_total", "generated_tokens", "requests", "cached_tokens"),
    *("prefill_tokens", "image_hits", "image_decodes"),
}

Status = Mapping[str, Any]
"""The response of ``GET /status``, plus ``at``: ``time.monotonic()`` when it arrived."""


def fetch(base_url: str, api_key: str | None) -> Status:
    """The current status.

    Raises:
        AuthenticationFailed: the API key is missing or wrong.
        InvalidRequest: the key or a variable of the environment can't be used.
        ServerUnreachable: there is no response, an HTTP error, or a response that isn't a status.
    """
    headers = {"authorization": f"Bearer {check_key(SecretStr(api_key)).get_secret_value()}"} if api_key else {}
    try:
        with make_http_client(httpx.Client, base_url, timeout=_TIMEOUT_S) as client:
            response = client.get(f"{base_url}/status", headers=headers)
    except (httpx.DecodingError, httpx.RemoteProtocolError) as error:
        raise ServerUnreachable(_no_status(base_url)) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachable(f"There is no response from {base_url}. Start a server: minigpt4 serve") from error
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise AuthenticationFailed(describe_key_refusal(base_url, bool(api_key), option=""))
    if response.is_error:
        failure = f"GET {base_url}/status failed with HTTP status {response.status_code}"
        raise ServerUnreachable(f"{failure}: this isn't a minigpt4 server, or it is failing.")
    try:
        status = response.json()
    except ValueError as error:
        raise ServerUnreachable(_no_status(base_url)) from error
    if not _is_status(status):
        raise ServerUnreachable(_no_status(base_url))
    return {**status, "at": time.monotonic()}


def _no_status(base_url: str) -> str:
    return f"The response of {base_url}/status isn't a status: this isn't a minigpt4 server, or one of another version."


def _is_status(value: Any) -> bool:
    """Whether a JSON value has all that the table shows."""
    engines = value.get("engines") if isinstance(value, dict) and "model" in value else None
    return isinstance(engines, list) and all(isinstance(engine, dict) and engine.keys() >= _SHOWN for engine in engines)


def render(now: Status, before: Status | None = None) -> Table:
    """One row per engine, and a row of totals for several engines. Rates require an earlier status."""
    count = len(now["engines"])
    engines = "1 engine" if count == 1 else f"{count} engines"
    table = Table(title=f"{now['model']}: {engines}", title_justify="left", title_style="bold")
    table.add_column("engine")
    for name in ("running", "waiting", "KV cache", "tokens/s", "requests/s", "prompt cached", "pictures cached"):
        table.add_column(name, justify="right")
    earlier = {} if before is None else {engine["name"]: engine for engine in before["engines"]}
    seconds = now["at"] - before["at"] if before is not None else 0.0
    for engine in now["engines"]:
        table.add_row(engine["name"], *_cells(engine, earlier.get(engine["name"]), seconds))
    if count > 1:
        table.add_section()
        comparable = all(engine["name"] in earlier for engine in now["engines"])
        past = _sum([earlier[engine["name"]] for engine in now["engines"]]) if comparable else None
        table.add_row("all", *_cells(_sum(now["engines"]), past, seconds))
    return table


def _sum(engines: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: sum(engine[name] for engine in engines) for name in engines[0] if name != "name"}


def _cells(engine: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> list[str]:
    def rate(name: str) -> str:
        return f"{(engine[name] - before[name]) / seconds:.1f}" if before is not None and seconds else "…"

    prompt_tokens = engine["cached_tokens"] + engine["prefill_tokens"]
    images = engine["image_hits"] + engine["image_decodes"]
    return [
        str(engine["running"]),
        str(engine["waiting"]),
        f"{engine['blocks_held'] / engine['blocks_total']:.0%}",
        rate("generated_tokens"),
        rate("requests"),
        f"{engine['cached_tokens'] / prompt_tokens:.0%}" if prompt_tokens else "…",
        f"{engine['image_hits'] / images:.0%}" if images else "…",
    ]


def follow(base_url: str, api_key: str | None) -> None:
    """Print the table and refresh it until Ctrl-C; print it once if the output isn't a terminal.

    Raises:
        AuthenticationFailed: the API key is missing or wrong.
        InvalidRequest: the key or a variable of the environment can't be used.
        ServerUnreachable: the first request failed. Later failures are shown, and the request is repeated.
    """
    console = Console()
    before = fetch(base_url, api_key)
    if not console.is_terminal:
        console.print(render(before))
        return
    with Live(render(before), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_REFRESH_INTERVAL_S)
                try:
                    now = fetch(base_url, api_key)
                except ServerUnreachable as error:
                    live.update(error.message, refresh=True)
                    continue
                live.update(render(now, before), refresh=True)
                before = now
        except KeyboardInterrupt:
            return
