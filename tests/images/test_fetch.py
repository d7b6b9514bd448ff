"""Downloads from untrusted URLs: attempts to reach addresses that aren't public, and limits."""

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from minigpt4_serve.errors import InvalidImage, InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import fetch
from minigpt4_serve.images.fetch import ImageFetcher, is_public

PUBLIC = "93.184.216.34"


def names(**table: Collection[str]) -> Callable[[str, int], Any]:
    """A resolver with the addresses of ``host_example`` for host.example; it records lookups."""

    async def resolve(host: str, port: int) -> Collection[str]:
        resolve.lookups.append((host, port))  # type: ignore[attr-defined]
        return table.get(host.replace(".", "_").replace("-", "_"), [host])

    resolve.lookups = []  # type: ignore[attr-defined]
    return resolve


def transport_with(
    answer: Callable[[httpx.Request], httpx.Response],
) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer(request)

    return httpx.MockTransport(handle), seen


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "240.0.0.1",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.0.8",
        "192.88.99.1",
        "100.100.100.200",
        "::ffff:168.63.129.16",
        "::ffff:192.0.0.192",
        "2001:2::1",
        "2001:10::1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "3fff::1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::a00:1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    transport, seen = transport_with(lambda _: httpx.Response(200, stream=httpx.ByteStream(b"bytes")))
    resolve = names(pictures_example=[PUBLIC])
    fetcher = ImageFetcher(100, resolve=resolve, transport=transport)
    assert await fetcher.fetch("https://Pictures.example:8443/a/b.png?x=1#here") == b"bytes"
    (request,) = seen
    assert str(request.url) == f"https://{PUBLIC}:8443/a/b.png?x=1"
    assert request.headers["host"] == "pictures.example:8443"
    assert request.extensions["sni_hostname"] == "pictures.example"
    assert resolve.lookups == [("pictures.example", 8443)], "looked up once"
    assert "cookie" not in request.headers
    assert "authorization" not in request.headers


REFUSED = {
    "http": ("http://pictures.example/a", "https"),
    "file": ("file:///etc/passwd", "https"),
    "ftp": ("ftp://pictures.example/a", "https"),
    "no host": ("https:///a", "https"),
    "user name": ("https://me:secret@pictures.example/a", "user name"),
    "loopback": ("https://127.0.0.1/a", "public internet"),
    "loopback in IPv6": ("https://[::1]/a", "public internet"),
    "mapped loopback": ("https://[::ffff:127.0.0.1]/a", "public internet"),
    "metadata": ("https://169.254.169.254/latest", "public internet"),
    "a name for a private address": ("https://inside.example/a", "public internet"),
    "one private address among public ones": ("https://both.example/a", "public internet"),
    "a name for nothing": ("https://nowhere.example/a", "public internet"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_before_any_connection(name: str) -> None:
    url, words = REFUSED[name]
    transport, seen = transport_with(lambda _: httpx.Response(200, stream=httpx.ByteStream(b"bytes")))
    resolve = names(
        pictures_example=[PUBLIC], inside_example=["10.0.0.5"], both_example=[PUBLIC, "192.168.0.1"], nowhere_example=[]
    )
    with pytest.raises(InvalidRequest, match=words) as refused:
        await ImageFetcher(100, resolve=resolve, transport=transport).fetch(url)
    assert seen == []
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("url", ["https://0x7f.1/a", "https://2130706433/a", "https://localhost/a", "https://127.1/a"])
async def test_odd_spellings_of_this_machine_with_the_real_resolver(url: str) -> None:
    transport, seen = transport_with(lambda _: httpx.Response(200, stream=httpx.ByteStream(b"bytes")))
    with pytest.raises(InvalidRequest, match="not on the public internet"):
        await ImageFetcher(100, transport=transport).fetch(url)
    assert seen == []


async def test_every_redirect_is_checked() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        steps = {"/1": "/2", "/2": "https://other.example/3", "/3": "/4", "/bad": "https://127.0.0.1/x"}
        steps |= {"/down": "http://other.example/3", "/loop": "/loop"}
        target = steps.get(request.url.path)
        return (
            httpx.Response(302, headers={"location": target})
            if target
            else httpx.Response(200, stream=httpx.ByteStream(b"end"))
        )

    transport, seen = transport_with(answer)
    resolve = names(pictures_example=[PUBLIC], other_example=["1.1.1.1"])
    fetcher = ImageFetcher(100, resolve=resolve, transport=transport)
    assert await fetcher.fetch("https://pictures.example/1") == b"end"
    assert [request.url.host for request in seen] == [PUBLIC, PUBLIC, "1.1.1.1", "1.1.1.1"]
    assert len(resolve.lookups) == 4, "each address is checked again"
    for path, words in {"bad": "public internet", "down": "https", "loop": "more than 3"}.items():
        with pytest.raises(InvalidRequest, match=words):
            await fetcher.fetch(f"https://pictures.example/{path}")
    assert all(request.url.host != "127.0.0.1" for request in seen)


async def test_only_allowed_hosts() -> None:
    transport, _ = transport_with(
        lambda r: (
            httpx.Response(302, headers={"location": "https://b.example/"})
            if r.url.path == "/away"
            else httpx.Response(200, stream=httpx.ByteStream(b"a"))
        )
    )
    resolve = names(a_example=[PUBLIC], b_example=[PUBLIC])
    fetcher = ImageFetcher(100, hosts=frozenset({"a.example"}), resolve=resolve, transport=transport)
    assert await fetcher.fetch("https://A.example./x") == b"a"
    for url in ("https://b.example/x", "https://a.example/away", "https://a.example.b.example/x"):
        with pytest.raises(InvalidRequest, match="host"):
            await fetcher.fetch(url)


class Endless(httpx.AsyncByteStream):
    """An endless body that counts the chunks that were read."""

    def __init__(self, wait: bool = False) -> None:
        self.chunks = 0
        self._wait = wait

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if self._wait and self.chunks:
                await asyncio.Event().wait()
            self.chunks += 1
            yield b"x" * 10


@pytest.mark.parametrize(
    ("response", "error", "timeout_s"),
    [
        (lambda: httpx.Response(404, content=b"no"), InvalidImage, 60),
        (lambda: httpx.Response(500), InvalidImage, 60),
        (lambda: httpx.Response(302), InvalidRequest, 60),
        (lambda: httpx.Response(200, stream=Endless()), PayloadTooLarge, 60),
        (lambda: httpx.Response(200, stream=Endless(wait=True)), InvalidImage, 0.3),
    ],
)
async def test_bad_answers(
    response: Callable[[], httpx.Response], error: type[MiniGPT4Error], timeout_s: float
) -> None:
    transport, _ = transport_with(lambda _: response())
    fetcher = ImageFetcher(100, timeout_s=timeout_s, resolve=names(a_example=[PUBLIC]), transport=transport)
    with pytest.raises(error):
        await fetcher.fetch("https://a.example/x")


async def test_connection_errors_hide_the_library_message() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] secret detail")

    transport, _ = transport_with(broken)
    with pytest.raises(InvalidImage) as failed:
        await ImageFetcher(100, resolve=names(a_example=[PUBLIC]), transport=transport).fetch("https://a.example/x")
    assert "secret" not in failed.value.message


class _ToLoopback(httpcore.AsyncNetworkBackend):
    """Connects to a local port for every address, and records the address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.addresses: list[str] = []
        self._real = httpcore.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        self.addresses.append(host)
        return await self._real.connect_tcp("127.0.0.1", self.port, *args, **kwargs)


def _certificate(host: str, folder: Path) -> ssl.SSLContext:
    """A server's context with a self-signed certificate for ``host``, written to ``folder``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_the_certificate_must_be_for_the_host_name(tmp_path: Path) -> None:
    """A real TLS connection to the checked address, with the host name in SNI."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=_certificate("pictures.example", tmp_path))
    async with server:
        backend = _ToLoopback(server.sockets[0].getsockname()[1])
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

        def fetcher() -> ImageFetcher:
            transport = httpx.AsyncHTTPTransport()
            transport._pool = httpcore.AsyncConnectionPool(ssl_context=trusted, network_backend=backend)
            resolve = names(pictures_example=[PUBLIC], other_example=[PUBLIC])
            return ImageFetcher(100, resolve=resolve, transport=transport)

        assert await fetcher().fetch("https://pictures.example/a") == b"hello"
        assert backend.addresses == [PUBLIC]
        with pytest.raises(InvalidImage):
            await fetcher().fetch("https://other.example/a")


async def test_slow_lookups_delay_only_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.startswith("slow"):
            answered.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fetcher = ImageFetcher(100, timeout_s=60)
    slow = [asyncio.create_task(fetcher.fetch(f"https://slow{i}.example/")) for i in range(12)]
    try:
        with pytest.raises(InvalidImage, match="typos"):
            async with asyncio.timeout(30):
                await fetcher.fetch("https://other.example/")
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "the default threads are free") is not None
        assert not any(task.done() for task in slow)
        monkeypatch.setattr(fetch, "_LOOKUP_S", 0.1)
        with pytest.raises(InvalidImage, match="in time"):
            await fetcher.fetch("https://slow.example/")
    finally:
        answered.set()
        await asyncio.gather(*slow, return_exceptions=True)
