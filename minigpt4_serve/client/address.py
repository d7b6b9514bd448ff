"""Address and key of the server when the caller gives none: the environment's, or the defaults."""

import os
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from minigpt4_serve.client.connection import check_key
from minigpt4_serve.errors import InvalidRequest

__all__ = ["DEFAULT_BASE_URL", "server_address", "server_key"]

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"


def server_address(given: str | None = None) -> str:
    """The server's address, ending in ``/v1`` if it has no path: given, or ``MINIGPT4_BASE_URL``, or the default.

    Raises:
        InvalidRequest: it isn't an address.
    """
    address = (given or os.environ.get("MINIGPT4_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    scheme, separator, rest = address.partition("://")
    if scheme not in ("http", "https") or not separator or not rest or not _is_readable(address):
        raise InvalidRequest("The vision server's address should look like http://127.0.0.1:8000/v1.", param="base_url")
    return address if "/" in rest else f"{address}/v1"


def server_key(given: SecretStr | None = None) -> SecretStr:
    """The key to send: ``given``, ``MINIGPT4_API_KEY``, or ``none``, which servers without keys ignore.

    Raises:
        InvalidRequest: it contains a character that no key has.
    """
    return check_key(given or SecretStr(os.environ.get("MINIGPT4_API_KEY") or "none"))


def _is_readable(address: str) -> bool:
    """Whether the HTTP library accepts the address."""
    try:
        parts = urlsplit(address)
        return bool(parts.hostname and httpx.URL(address).host) and parts.port != 0 and len(address.split()) == 1
    except (httpx.InvalidURL, ValueError):
        return False
