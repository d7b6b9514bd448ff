"""Addresses of embedded images."""

import pytest
from minigpt4_bots.discord.messages import _trusted_url

PROXY = "https://images-ext-1.discordapp.net/external/a/https/example.org/a.png"
CDN = "https://cdn.discordapp.com/attachments/1/2/a.png"


@pytest.mark.parametrize(
    ("proxy_url", "url", "chosen"),
    [
        (PROXY, "https://example.org/a.png", PROXY),
        (None, CDN, CDN),
        ("", CDN, CDN),
        (None, "https://example.org/a.png", None),
        ("http://169.254.169.254/latest", CDN, CDN),
        ("http://169.254.169.254/latest", "https://example.org/a.png", None),
        ("https://discordapp.net.example.org/a.png", None, None),
        ("https://notdiscordapp.net/a.png", None, None),
        ("http://media.discordapp.net/a.png", None, None),
        ("https://media.discordapp.net@127.0.0.1/a.png", None, None),
        ("file:///etc/passwd", None, None),
        (None, "http://[::1", None),
        (None, "https://cdn.discordapp.com:99999/a.png", None),
        ("http://x:port/", "//cdn.discordapp.com/a.png", None),
        (None, None, None),
    ],
)
def test_only_discords_addresses_are_fetched(proxy_url: str | None, url: str | None, chosen: str | None) -> None:
    assert _trusted_url(proxy_url, url) == chosen
