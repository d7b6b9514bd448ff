"""Downloads images from untrusted https URLs, protected against server-side request forgery.

A host name is resolved once, all of its addresses must be public, and the connection is made to the address that was
checked: a second lookup could return another one. Every redirect is checked in the same way.
"""

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx

from minigpt4_serve.errors import InvalidImage, InvalidRequest, MiniGPT4Error, PayloadTooLarge

__all__ = ["ImageFetcher", "is_public"]

_MAX_LOOKUPS = 32
_LOOKUP_S = 5.0
_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
# Not on the public internet, although some Pythons consider them global: 6to4 and Teredo embed an IPv4 address, which
# may be private; metadata services of clouds are at 192.0.0.192 (Oracle) and 168.63.129.16 (Azure).
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",
            "192.0.0.0/24",  # protocol assignments
            "192.88.99.0/24",  # 6to4 relays
            "2001::/23",  # protocol assignments, Teredo
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")  # the only allocated unicast range

Resolve = Callable[[str, int], Awaitable[Collection[str]]]


def is_public(address: str) -> bool:
    """Whether an address is on the public internet: not loopback, private, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.scope_id is not None or ip not in _GLOBAL_IPV6:
            return False
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Cached: loading the root certificates takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


@functools.cache
def _lookup_threads() -> ThreadPoolExecutor:
    """Threads for lookups alone: one that isn't answered occupies its thread until the system gives up."""
    return ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="minigpt4-lookup")


async def _resolve(host: str, port: int) -> Collection[str]:
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    async with asyncio.timeout(_LOOKUP_S):
        found = await asyncio.get_running_loop().run_in_executor(_lookup_threads(), look_up)
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True)
class ImageFetcher:
    """Downloads the content of https URLs, within limits.

    Attributes:
        max_bytes: largest body.
        timeout_s: seconds for lookups, redirects and the body together.
        hosts: allowed hosts, for redirects as well; None allows every public one.
        resolve: resolves (host name, port) to addresses.
        transport: httpx transport; httpx's default if None.
    """

    max_bytes: int
    timeout_s: float = 10.0
    hosts: frozenset[str] | None = None
    resolve: Resolve = _resolve
    transport: httpx.AsyncBaseTransport | None = None

    async def fetch(self, url: str) -> bytes:
        """The body at ``url``.

        Raises:
            InvalidRequest: not https, a host that isn't allowed or isn't public, too many redirects.
            InvalidImage: the server failed or didn't respond in time.
            PayloadTooLarge: more than ``max_bytes``.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._follow(url)
        except MiniGPT4Error:
            raise
        except TimeoutError as error:
            raise InvalidImage("The picture's address did not answer in time; try again or use another.") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise InvalidImage("Nothing could be fetched from the picture's address; check it for typos.") from error

    async def _follow(self, url: str) -> bytes:
        # trust_env=False: a proxy would resolve the name again.
        async with httpx.AsyncClient(
            verify=_ssl_context(), trust_env=False, transport=self.transport, timeout=self.timeout_s
        ) as client:
            for _ in range(_MAX_REDIRECTS + 1):
                request = await self._checked_request(client, url)
                response = await client.send(request, stream=True)
                try:
                    if response.status_code not in _REDIRECTS:
                        return await self._read(response)
                    url = urljoin(url, response.headers.get("location", ""))
                finally:
                    await response.aclose()
        raise InvalidRequest(f"The picture's address redirects more than {_MAX_REDIRECTS} times; use the last address.")

    async def _checked_request(self, client: httpx.AsyncClient, url: str) -> httpx.Request:
        """A request to the checked address, with the host's name in the Host header and in TLS."""
        target = httpx.URL(url)
        if target.scheme != "https" or not target.host:
            raise InvalidRequest("Only https addresses of pictures are fetched.")
        if target.userinfo:
            raise InvalidRequest("A picture's address must not carry a user name or password.")
        host = target.raw_host.decode("ascii").strip("[]").rstrip(".").lower()
        if self.hosts is not None and host not in self.hosts:
            raise InvalidRequest("Pictures from this host are not allowed; use one of the allowed hosts or a file.")
        port = target.port or 443
        # IPv4 first: many containers have IPv6 addresses but no IPv6 route.
        addresses = sorted(await self.resolve(host, port), key=lambda address: ":" in address)
        if not addresses or not all(map(is_public, addresses)):
            raise InvalidRequest("The picture's address is not on the public internet; only public ones are fetched.")
        return client.build_request(
            "GET",
            target.copy_with(host=addresses[0], fragment=None),
            headers={
                "host": target.netloc.decode("ascii"),
                "accept": "image/*",
                "accept-encoding": "identity",
                "user-agent": "minigpt4-serve",
            },
            extensions={"sni_hostname": host},
        )

    async def _read(self, response: httpx.Response) -> bytes:
        if response.status_code != httpx.codes.OK:
            raise InvalidImage(f"The picture's address answered with status {response.status_code}; use another.")
        body = bytearray()
        # Raw bytes: a small compressed body could expand to a huge one.
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self.max_bytes:
                raise PayloadTooLarge(f"The picture at this address has more than {self.max_bytes / 2**20:.0f} MiB.")
        return bytes(body)
