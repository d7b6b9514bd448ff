"""The image cache: one decode for equal images, eviction of features, and canceled callers."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from drawing import draw, encode

from minigpt4_serve.engine import image_cache
from minigpt4_serve.engine.image_cache import ImageCache, MemoryBudget
from minigpt4_serve.errors import EngineFailed, InvalidImage
from minigpt4_serve.images import DecodedImage, EncodedImage, ImageLimits, validate_image
from minigpt4_serve.images.validation import open_container


def make_image(color: str) -> EncodedImage:
    return validate_image(encode(draw(color)), ImageLimits())


def features(value: float) -> torch.Tensor:
    return torch.full((4, 8), float(value))  # 128 bytes


@pytest.fixture
def cache() -> Iterator[ImageCache]:
    cache = ImageCache(lambda image: torch.ones(3, 2, 2), max_bytes=300, decode_threads=2)
    yield cache
    cache.close()


async def test_a_cached_image_is_not_decoded(cache: ImageCache) -> None:
    red = make_image("red")
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


async def test_concurrent_callers_share_one_decode(cache: ImageCache) -> None:
    red = make_image("red")
    answers = await asyncio.gather(*(cache.resolve([red]) for _ in range(10)))
    assert cache.decodes == 1
    assert len({entry for (entry,) in answers}) == 1


async def encode_and_store(cache: ImageCache, color: str, rows: torch.Tensor) -> None:
    (entry,) = await cache.resolve([make_image(color)])
    if entry.features is None:
        cache.put(entry, rows)


async def is_cached(cache: ImageCache, color: str) -> bool:
    before = cache.decodes
    await cache.resolve([make_image(color)])
    return cache.decodes == before


async def test_the_least_recently_used_features_are_evicted(cache: ImageCache) -> None:
    await encode_and_store(cache, "red", features(1))
    await encode_and_store(cache, "green", features(2))
    await encode_and_store(cache, "red", features(1))
    await encode_and_store(cache, "blue", features(3))
    assert [color for color in ("red", "blue", "green") if await is_cached(cache, color)] == ["red", "blue"]


async def test_features_larger_than_the_cache_stay_until_the_next(cache: ImageCache) -> None:
    await encode_and_store(cache, "red", torch.zeros(1000))
    assert await is_cached(cache, "red")
    await encode_and_store(cache, "blue", features(1))
    assert await is_cached(cache, "blue")
    assert not await is_cached(cache, "red")


async def test_evicted_features_in_use_are_still_found(cache: ImageCache) -> None:
    (held,) = await cache.resolve([make_image("red")])
    cache.put(held, torch.zeros(1000))
    await encode_and_store(cache, "blue", features(1))
    (again,) = await cache.resolve([make_image("red")])
    assert again is held


async def test_images_without_a_request_are_not_kept(cache: ImageCache) -> None:
    """Images that are never encoded would otherwise fill the memory."""
    await cache.resolve([make_image("red")])
    assert not await is_cached(cache, "red")


async def test_a_damaged_image_is_an_error_every_time(cache: ImageCache) -> None:
    data = encode(draw("red", (200, 200)))
    half = validate_image(data[: len(data) // 2], ImageLimits())
    for _ in range(2):
        with pytest.raises(InvalidImage):
            await cache.resolve([make_image("blue"), half])


async def test_a_canceled_caller_does_not_cancel_anothers_decode() -> None:
    gate = threading.Event()

    def slow(image: Any) -> torch.Tensor:
        assert gate.wait(120)
        return torch.ones(3, 2, 2)

    cache = ImageCache(slow, max_bytes=300, decode_threads=1)
    red = make_image("red")
    # The only thread is busy, so the decode of red is queued: only then can it be canceled.
    busy = asyncio.ensure_future(cache.resolve([make_image("green")]))
    first, second = (asyncio.ensure_future(cache.resolve([red])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    cache.close()  # with a decode in progress
    gate.set()
    (entry,) = await second
    assert entry.digest == red.digest
    await busy
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(EngineFailed):
        await cache.resolve([make_image("blue")])


async def test_images_of_canceled_requests_are_not_decoded() -> None:
    gate = threading.Event()
    decoded = []

    def slow(image: Any) -> torch.Tensor:
        assert gate.wait(120)
        decoded.append(image.crop((0, 0, 64, 48)).getpixel((32, 24)))
        return torch.ones(3, 2, 2)

    cache = ImageCache(slow, max_bytes=300, decode_threads=1)
    kept, canceled, half_canceled, also_kept = (
        asyncio.ensure_future(cache.resolve([make_image(color)])) for color in ("red", "green", "blue", "blue")
    )
    await asyncio.sleep(0)
    for task in (canceled, half_canceled):
        task.cancel()
    await asyncio.wait([canceled, half_canceled])
    gate.set()
    await asyncio.gather(kept, also_kept)
    cache.close()
    assert decoded == [(255, 0, 0), (0, 0, 255)]


def test_decodes_share_a_memory_budget() -> None:
    budget = MemoryBudget(100)
    used = 0
    most = 0
    lock = threading.Lock()

    def hold(size: int) -> None:
        nonlocal used, most
        with budget.reserve(size):
            with lock:
                used += size
                most = max(most, used)
            with lock:
                used -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [40, 60, 30, 100, 10, 70] * 50))
    assert most <= 100


def test_an_image_above_the_budget_is_decoded_alone() -> None:
    budget = MemoryBudget(100)
    begun = threading.Event()

    def hold() -> None:
        with budget.reserve(500):
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        with budget.reserve(1):
            alone = pool.submit(hold)
            assert not begun.wait(0.05)
        alone.result(120)


async def test_the_cache_decodes_within_its_budget() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def to_tensor(image: Any) -> torch.Tensor:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return torch.ones(3, 2, 2)

    one = open_container(make_image("red").data)[1].decode_bytes
    cache = ImageCache(to_tensor, max_bytes=300, decode_threads=4, decode_bytes=2 * one)
    await cache.resolve([make_image(color) for color in ("red", "green", "blue", "white", "black", "yellow")])
    assert 1 <= most <= 2
    cache.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
async def test_memory_of_large_images_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = 0

    def count() -> None:
        nonlocal returned
        returned += 1

    monkeypatch.setattr(image_cache, "return_free_memory", count)
    cache = ImageCache(lambda _: torch.ones(3, 2, 2), max_bytes=300, decode_threads=1)
    await cache.resolve([make_image("red")])
    assert returned == 0
    monkeypatch.setattr(image_cache, "_LARGE", open_container(make_image("red").data)[1].decode_bytes)
    await cache.resolve([make_image("green")])
    assert returned == 1
    with pytest.raises(InvalidImage):
        await cache.resolve([EncodedImage("damaged", make_image("blue").data[:-30])])
    assert returned == 2
    cache.close()


async def test_images_do_not_wait_for_large_ones() -> None:
    gate = threading.Event()

    def to_tensor(image: DecodedImage) -> torch.Tensor:
        if image.size[0] == 65:
            assert gate.wait(60)
        return torch.ones(3, 2, 2)

    cache = ImageCache(to_tensor, max_bytes=300, decode_threads=1)
    data = encode(draw("red", (65, 48)))
    large = [EncodedImage(f"{n}", data, decode_bytes=image_cache._LARGE) for n in range(3)]
    decoding = [asyncio.create_task(cache.resolve([image])) for image in large]
    await asyncio.sleep(0.1)
    await cache.resolve([make_image("red")])
    gate.set()
    await asyncio.gather(*decoding)
    cache.close()
