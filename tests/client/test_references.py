"""References to pictures: allowed folders with links, pipes and climbing paths, data: URLs, and what is refused."""

import base64
import os
from pathlib import Path

import httpx
import pytest
from drawing import draw, encode

from minigpt4_serve.client import PictureSources, is_handle, read_each
from minigpt4_serve.errors import InvalidImage, InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import ImageLimits
from minigpt4_serve.images.fetch import ImageFetcher

RED = encode(draw("red"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "in"
    (inside / "deep").mkdir(parents=True)
    (inside / "red.png").write_bytes(RED)
    (inside / "deep" / "red.png").write_bytes(RED)
    (inside / "within.png").symlink_to(inside / "deep" / "red.png")
    (tmp_path / "out.png").write_bytes(RED)
    (inside / "link.png").symlink_to(tmp_path / "out.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "loop").symlink_to(inside / "loop")
    (tmp_path / "in-too").mkdir()
    (tmp_path / "in-too" / "red.png").write_bytes(RED)
    return inside


@pytest.mark.parametrize("name", ["red.png", " red.png ", "deep/red.png", "deep/../red.png", "within.png"])
async def test_files_inside(name: str, folder: Path) -> None:
    assert (await PictureSources((folder,)).read(name)).data == RED
    assert (await PictureSources((folder,)).read(str(folder / name.strip()))).data == RED


@pytest.mark.parametrize(
    "name",
    [
        *("../out.png", "link.png", "up/out.png", "/etc/hostname", "deep/../../out.png", "../in-too/red.png"),
        *("../gone.png", "/proc/self/root/etc/hostname", "//host/share/a.png", r"\\host\share\a.png", "/", ".."),
    ],
)
async def test_files_outside_are_refused_whether_they_exist_or_not(name: str, folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="outside the folders") as refused:
        await PictureSources((folder,)).read(name)
    assert str(folder.parent) not in refused.value.message


@pytest.mark.parametrize(
    "name",
    [
        *("gone.png", "loop", "a\0b", "", ".", "deep", "x" * 5000, "red.png/../../out.png", "~/red.png"),
        *(r"..\out.png", r"C:\Windows\a.png", "C:red.png", "%2e%2e/out.png", "deep/%00", "red.png\u202e"),
    ],
)
async def test_what_cant_be_opened(name: str, folder: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await PictureSources((folder,)).read(name)
    assert str(folder.parent) not in refused.value.message


async def test_a_pipe_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidRequest, match="not a file"):
        await PictureSources((folder,)).read("pipe")


async def test_a_file_that_is_too_large_is_not_read_whole(folder: Path) -> None:
    with (folder / "big.png").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(PayloadTooLarge):
        await PictureSources((folder,), limits=ImageLimits(max_bytes=1000)).read("big.png")


async def test_several_folders_and_more_of_them(folder: Path) -> None:
    sources = PictureSources((folder / "deep",)).with_folders([folder.parent / "in-too"])
    assert (await sources.read(str(folder.parent / "in-too" / "red.png"))).data == RED
    with pytest.raises(InvalidRequest, match="outside the folders"):
        await sources.read(str(folder / "red.png"))


async def test_data_urls_always_work() -> None:
    url = f"data:image/png;base64,{base64.b64encode(RED).decode()}"
    assert (await PictureSources().read(url)).data == RED
    for bad in ("data:image/png;base64,!!", "data:image/png,abc", "data:", f"{url[:200]}"):
        with pytest.raises(MiniGPT4Error):
            await PictureSources().read(bad)


async def test_addresses_only_if_allowed() -> None:
    async def resolve(*_: object) -> list[str]:
        return ["1.1.1.1"]

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=httpx.ByteStream(RED)))
    fetcher = ImageFetcher(10**6, resolve=resolve, transport=transport)
    assert (await PictureSources(urls=True, fetcher=fetcher).read("https://a.example/x")).data == RED
    for sources in (PictureSources(fetcher=fetcher), PictureSources(urls=["b.example"])):
        with pytest.raises(InvalidRequest, match="not allowed"):
            await sources.read("https://a.example/x")


async def test_pixels_are_checked_before_anything_is_sent(folder: Path) -> None:
    damaged = encode(draw(size=(400, 400)))
    (folder / "damaged.png").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(InvalidImage, match="damaged"):
        await PictureSources((folder,)).read("damaged.png")


async def test_one_of_several_is_named(folder: Path) -> None:
    sources = PictureSources((folder,))
    with pytest.raises(InvalidRequest, match=r"Picture 2 of 2: There is no"):
        await read_each(["red.png", "gone.png"], sources.read)
    with pytest.raises(InvalidRequest, match="At most 1"):
        await read_each(["red.png", "red.png"], sources.read, limit=1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("image_1", True), ("image_12", True), ("image_0", False), ("image_", False), ("image_1.png", False), ("", False)],
)
def test_handles(name: str, expected: bool) -> None:
    assert is_handle(name) is expected
