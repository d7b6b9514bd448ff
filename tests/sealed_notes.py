"""Notes of unfinished answers as the bots of 0.1.0 encrypted them."""

import hashlib
import hmac


def seal_as_0_1_0(key: bytes, text: str) -> bytes:
    """HMAC-SHA256 in counter mode over a nonce, with a tag of 16 bytes."""
    nonce = b"n" * 16
    data = text.encode()
    stream = b"".join(
        hmac.new(key, b"stream\0" + nonce + block.to_bytes(4, "big"), hashlib.sha256).digest()
        for block in range(-(-len(data) // 32))
    )
    hidden = bytes(a ^ b for a, b in zip(data, stream[: len(data)], strict=True))
    return nonce + hmac.new(key, b"tag\0" + nonce + hidden, hashlib.sha256).digest()[:16] + hidden
