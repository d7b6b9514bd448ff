"""Work on images: in threads of its own, ended with its request."""

import asyncio
import threading

import pytest

from minigpt4_serve.errors import InvalidImage, Overloaded
from minigpt4_serve.images import run_image_work


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


async def _occupy(gate: threading.Event) -> list["asyncio.Task[bool]"]:
    """Fill all threads until the gate opens; they are returned."""
    begun = threading.Semaphore(0)

    def wait() -> bool:
        begun.release()
        return gate.wait(120)

    busy = [asyncio.ensure_future(run_image_work(wait)) for _ in range(8)]
    await asyncio.to_thread(begun.acquire)
    await asyncio.to_thread(begun.acquire)
    return busy


async def test_work_runs_in_threads_of_its_own() -> None:
    assert (await run_image_work(lambda: threading.current_thread().name)).startswith("minigpt4-images")


async def test_small_images_do_not_wait_for_large_ones(gate: threading.Event) -> None:
    large = [asyncio.ensure_future(run_image_work(lambda: gate.wait(120), size=20 * 2**20)) for _ in range(8)]
    await asyncio.sleep(0)
    assert await run_image_work(lambda: "checked", size=20_000) == "checked"
    gate.set()
    assert all(await asyncio.gather(*large))


async def test_errors_of_the_work_reach_the_caller() -> None:
    def fail() -> None:
        raise InvalidImage("no")

    with pytest.raises(InvalidImage, match="no"):
        await run_image_work(fail)


async def test_work_of_a_canceled_request_never_begins(gate: threading.Event) -> None:
    busy = await _occupy(gate)
    begun = []
    canceled = asyncio.ensure_future(run_image_work(lambda: begun.append("canceled")))
    await asyncio.sleep(0)
    canceled.cancel()
    await asyncio.wait([canceled])
    gate.set()
    await asyncio.gather(*busy)
    await run_image_work(lambda: begun.append("next"))
    assert begun == ["next"]


async def test_work_that_waits_too_long_is_refused(gate: threading.Event) -> None:
    busy = await _occupy(gate)
    begun = []
    with pytest.raises(Overloaded) as caught:
        await run_image_work(lambda: begun.append(1), timeout_s=0.01)
    assert caught.value.status == 429
    gate.set()
    await asyncio.gather(*busy)
    assert begun == []
