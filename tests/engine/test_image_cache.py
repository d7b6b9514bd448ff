import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drawing import draw, encode

from minigpt4_serve.engine.image_cache import ImageCache
from minigpt4_serve.errors import EngineFailed, InvalidImage
from minigpt4_serve.images import EncodedImage, ImageLimits, validate_image


def picture(color: str) -> EncodedImage:
    return validate_image(encode(draw(color)), ImageLimits())


def features(value: float) -> torch.Tensor:
    return torch.full((4, 8), float(value))  # 128 bytes


@pytest.fixture
def cache() -> Iterator[ImageCache]:
    cache = ImageCache(lambda image: torch.ones(3, 2, 2), max_bytes=300, decode_threads=2)
    yield cache
    cache.close()


async def test_a_known_picture_is_not_decoded(cache: ImageCache) -> None:
    red = picture("red")
    first, second = await cache.resolve([red, red])
    assert first is second
    assert first.features is None
    assert first.pixels.result().shape == (3, 2, 2)
    assert (cache.decodes, cache.hits) == (1, 0)
    cache.put(first, features(1))
    del first, second
    again, _ = await cache.resolve([red, red])
    assert torch.equal(again.features, features(1))
    assert (cache.decodes, cache.hits) == (1, 2)


async def test_callers_at_the_same_time_share_one_decode(cache: ImageCache) -> None:
    red = picture("red")
    answers = await asyncio.gather(*(cache.resolve([red]) for _ in range(10)))
    assert cache.decodes == 1
    assert len({seen for (seen,) in answers}) == 1


async def encode_one(cache: ImageCache, color: str, rows: torch.Tensor) -> None:
    (seen,) = await cache.resolve([picture(color)])
    if seen.features is None:
        cache.put(seen, rows)


async def is_kept(cache: ImageCache, color: str) -> bool:
    before = cache.decodes
    await cache.resolve([picture(color)])
    return cache.decodes == before


async def test_the_least_recently_used_features_make_room(cache: ImageCache) -> None:
    await encode_one(cache, "red", features(1))
    await encode_one(cache, "green", features(2))
    await encode_one(cache, "red", features(1))
    await encode_one(cache, "blue", features(3))
    assert [color for color in ("red", "blue", "green") if await is_kept(cache, color)] == ["red", "blue"]


async def test_features_larger_than_the_cache_are_kept_until_the_next(cache: ImageCache) -> None:
    await encode_one(cache, "red", torch.zeros(1000))
    assert await is_kept(cache, "red")
    await encode_one(cache, "blue", features(1))
    assert await is_kept(cache, "blue")
    assert not await is_kept(cache, "red")


async def test_evicted_features_in_use_are_still_found(cache: ImageCache) -> None:
    (held,) = await cache.resolve([picture("red")])
    cache.put(held, torch.zeros(1000))
    await encode_one(cache, "blue", features(1))
    (again,) = await cache.resolve([picture("red")])
    assert again is held


async def test_pictures_that_nobody_waits_for_are_not_kept(cache: ImageCache) -> None:
    """Damaged ones are never encoded; were they kept, sending them would fill the memory."""
    await cache.resolve([picture("red")])
    assert not await is_kept(cache, "red")


async def test_a_damaged_picture_is_its_senders_error_every_time(cache: ImageCache) -> None:
    data = encode(draw("red", (200, 200)))
    half = validate_image(data[: len(data) // 2], ImageLimits())
    for _ in range(2):
        with pytest.raises(InvalidImage):
            await cache.resolve([picture("blue"), half])


async def test_a_caller_who_leaves_does_not_stop_anothers_decode() -> None:
    gate = threading.Event()

    def slow(image: Any) -> torch.Tensor:
        assert gate.wait(120)
        return torch.ones(3, 2, 2)

    cache = ImageCache(slow, max_bytes=300, decode_threads=1)
    red = picture("red")
    # The only thread is busy, so red's decode still waits for it: only there can it be canceled.
    busy = asyncio.ensure_future(cache.resolve([picture("green")]))
    first, second = (asyncio.ensure_future(cache.resolve([red])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    cache.close()  # even now
    gate.set()
    (seen,) = await second
    assert seen.digest == red.digest
    await busy
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(EngineFailed):
        await cache.resolve([picture("blue")])


async def test_what_nobody_waits_for_any_more_is_not_decoded() -> None:
    gate, decoded = threading.Event(), []

    def slow(image: Any) -> torch.Tensor:
        assert gate.wait(120)
        decoded.append(image.getpixel((32, 24)))
        return torch.ones(3, 2, 2)

    cache = ImageCache(slow, max_bytes=300, decode_threads=1)
    first, left, shared, also = (
        asyncio.ensure_future(cache.resolve([picture(color)])) for color in ("red", "green", "blue", "blue")
    )
    await asyncio.sleep(0)
    for one in (left, shared):
        one.cancel()
    await asyncio.wait([left, shared])
    gate.set()
    await asyncio.gather(first, also)
    cache.close()
    assert decoded == [(255, 0, 0), (0, 0, 255)]
