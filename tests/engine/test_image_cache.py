import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drawing import draw, encode

from minigpt4_serve.engine.image_cache import ImageCache
from minigpt4_serve.errors import EngineFailed, InvalidImage
from minigpt4_serve.pictures import ImageLimits, Picture, check_picture


def picture(color: str) -> Picture:
    return check_picture(encode(draw(color)), ImageLimits())


def features(value: float) -> torch.Tensor:
    return torch.full((4, 8), float(value))  # 128 bytes


@pytest.fixture
def cache() -> Iterator[ImageCache]:
    cache = ImageCache(lambda image: torch.ones(3, 2, 2), max_bytes=300, decode_threads=2)
    yield cache
    cache.close()


async def test_a_known_picture_is_not_decoded(cache: ImageCache) -> None:
    red = picture("red")
    known, pixels = await cache.resolve([red, red])
    assert (list(known), list(pixels)) == ([], [red.digest])
    assert cache.decodes == 1
    cache.put(red.digest, features(1))
    known, pixels = await cache.resolve([red, red])
    assert (list(known), list(pixels)) == ([red.digest], [])
    assert (cache.decodes, cache.hits) == (1, 2)


async def test_callers_at_the_same_time_share_one_decode(cache: ImageCache) -> None:
    red = picture("red")
    answers = await asyncio.gather(*(cache.resolve([red]) for _ in range(10)))
    assert cache.decodes == 1
    assert all(pixels.keys() == {red.digest} for _, pixels in answers)


async def test_the_least_recently_used_features_make_room(cache: ImageCache) -> None:
    cache.put("a", features(1))
    cache.put("b", features(2))
    assert cache.get("a") is not None
    cache.put("c", features(3))
    assert [name for name in "abc" if cache.get(name) is not None] == ["a", "c"]
    cache.put("c", features(3))  # once more changes nothing
    assert cache.get("a") is not None


async def test_a_picture_larger_than_the_cache_is_kept_until_the_next(cache: ImageCache) -> None:
    cache.put("large", torch.zeros(1000))
    assert cache.get("large") is not None
    cache.put("a", features(1))
    assert cache.get("large") is None
    assert cache.get("a") is not None


async def test_a_damaged_picture_is_its_senders_error_every_time(cache: ImageCache) -> None:
    data = encode(draw("red", (200, 200)))
    half = check_picture(data[: len(data) // 2], ImageLimits())
    for _ in range(2):
        with pytest.raises(InvalidImage):
            await cache.resolve([picture("blue"), half])


async def test_a_caller_who_leaves_does_not_stop_anothers_decode() -> None:
    gate = threading.Event()

    def slow(image: Any) -> torch.Tensor:
        assert gate.wait(10)
        return torch.ones(3, 2, 2)

    cache = ImageCache(slow, max_bytes=300, decode_threads=1)
    red = picture("red")
    first, second = (asyncio.ensure_future(cache.resolve([red])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    cache.close()  # even now
    gate.set()
    _, pixels = await second
    assert red.digest in pixels
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(EngineFailed):
        await cache.resolve([picture("blue")])
