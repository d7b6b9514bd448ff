"""The one place where HTTP clients are constructed: which proxy they use, which certificates, and what a key may hold.

An address of this machine is always connected to directly. Elsewhere the proxy variables of the environment apply.
"""

import ipaddress
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import SecretStr

from minigpt4_serve.errors import InvalidRequest

__all__ = ["check_key", "is_this_machine", "make_http_client"]


_C = TypeVar("_C")

_BAD_KEY = (
    "The API key contains a line break or another character that no key has; copy it again, without anything around it."
)


def make_http_client(kind: Callable[..., _C], url: str, **options: Any) -> _C:
    """An HTTP client for requests to the host of ``url``.

    Args:
        kind: a client class of ``httpx`` or the OpenAI client, or what makes one from such a class's arguments.
        options: further arguments of ``kind``.

    Raises:
        InvalidRequest: ``url`` isn't an address; a proxy or certificate variable of the environment has a value that
            can't be used and is needed here.
    """
    options |= _certificates(url)
    if _is_direct(url):
        return kind(trust_env=False, **options)
    try:
        return kind(trust_env=True, **options)
    except Exception as error:  # InvalidURL of either HTTP library has no base class in common with the others
        raise InvalidRequest(_describe_proxies()) from error


def is_this_machine(host: str) -> bool:
    """Whether ``host`` is a name or address of this machine only: loopback, or the unspecified address."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def check_key(key: SecretStr) -> SecretStr:
    """The key without blanks and line breaks around it.

    Raises:
        InvalidRequest: it contains a character that can't be sent in an HTTP header.
    """
    text = key.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()):
        raise InvalidRequest(_BAD_KEY, param="api_key")
    return SecretStr(text)


def _is_direct(url: str) -> bool:
    """Whether requests to ``url`` use no proxy."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise InvalidRequest("The server's address can't be read; check it for typos.", param="base_url") from error
    return is_this_machine(host) or not _proxy_variables() or bool(proxy_bypass(parts.netloc.rpartition("@")[2]))


def _certificates(url: str) -> dict[str, ssl.SSLContext]:
    """The argument ``verify``, where the library's own choice of certificates won't do.

    The library fails on a variable that names no readable file, also for addresses that need no certificate.
    """
    given = {name: value for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if (value := os.environ.get(name))}
    if not given:
        return {}
    if not url.lower().startswith("https:"):
        return {"verify": ssl.create_default_context()}  # only a redirection could need it
    file = given.get("SSL_CERT_FILE")
    folders = given.get("SSL_CERT_DIR")
    try:
        if folders and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
            raise NotADirectoryError(folders)  # OpenSSL ignores it
        context = ssl.create_default_context(cafile=file, capath=folders)
    except OSError as error:  # ssl.SSLError is one
        named = " and ".join(f"{name}={value}" for name, value in given.items())
        raise InvalidRequest(f"No certificates can be read from {named}; correct the variable or unset it.") from error
    return {"verify": context}


def _proxy_variables() -> list[str]:
    """Names of the proxy variables that are set; the system's own settings count as well."""
    proxies = getproxies()
    return [f"{scheme.upper()}_PROXY" for scheme in ("http", "https", "all") if proxies.get(scheme)]


def _describe_proxies() -> str:
    """What is wrong with the proxy variables. Their values may hold passwords and aren't shown."""
    names = ", ".join(_proxy_variables())
    if any(value.lower().startswith("socks5") for value in getproxies().values()):
        return f"The SOCKS proxy in {names} needs the package socksio (pip install socksio), or NO_PROXY with the host."
    return f"The value of {names} isn't the address of a proxy, such as http://proxy:3128; correct it or unset it."
