"""References to pictures: allowed folders with links, pipes and climbing paths, data: URLs, and what is refused."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from drawing import draw, encode

from minigpt4_serve.client import PictureSources, image_paths, is_handle, path_of_file_url, read_each, references
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


ON_DISK = (
    *(
        "Screenshot 9.41\u202fPM.png",
        "cafe\u0301.png",
        "a b.png",
        "John\u2019s \u2013 1.png",
        "\u200eWhats\u00a0App.png",
    ),
    *("a%20c.png", "Fotos e\u0301/x.png", "two  blanks.png"),
)
WRITTEN = [
    ("Screenshot 9.41 PM.png", 0),
    ("Screenshot 9.41\u202fPM.png", 0),
    (r"Screenshot\ 9.41\ PM.png", 0),
    ("caf\u00e9.png", 1),
    ("cafe\u0301.png", 1),
    ("caf%C3%A9.png", 1),
    ('"a b.png"', 2),
    ("'a b.png'", 2),
    ("`a b.png`", 2),
    (r"a\ b.png", 2),
    ("a%20b.png", 2),
    ("a\u00a0b.png", 2),
    ("~/in/a b.png", 2),
    ("~/in/a%20b.png", 2),
    ("John's - 1.png", 3),
    ("Whats App.png", 4),
    ("a%20c.png", 5),
    ("Fotos \u00e9/x.png", 6),
    ("FOLDER/Fotos \u00e9/x.png", 6),
    ("file://FOLDER/Fotos%20%C3%A9/x.png", 6),
    ("two blanks.png", 7),
]


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    inside = tmp_path / "in"
    for number, name in enumerate(ON_DISK):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(RED + bytes([number]))
    return inside


@pytest.mark.parametrize(("written", "number"), WRITTEN)
async def test_paths_as_models_write_them(written: str, number: int, named: Path) -> None:
    found = await PictureSources((named,)).read(written.replace("FOLDER", str(named)))
    assert found.data[-1] == number


async def test_an_exact_name_has_precedence(named: Path) -> None:
    for number, name in enumerate(("a b.png", "a\u00a0b.png", "'a b.png'", "a%20b.png", r"a\ b.png")):
        (named / name).write_bytes(RED + bytes([number]))
        assert (await PictureSources((named,)).read(name)).data[-1] == number


async def test_a_name_of_several_similar_files_is_refused(named: Path) -> None:
    (named / "a\u00a0b.png").write_bytes(RED)
    with pytest.raises(InvalidRequest, match="no readable picture"):
        await PictureSources((named,)).read("a\u202fb.png")


@pytest.mark.parametrize(
    "written",
    [
        *(
            "'../out.png'",
            "..%2Fout.png",
            r"..\/out.png",
            "~/out.png",
            "up/o\u00a0t.png",
            "file:///etc/hostname",
            "~root/x",
        ),
        *("%2Fetc%2Fhostname", "file://host/share/a.png", "'//host/share/a.png'", "up/out.png", "`up/out.png`", "~"),
    ],
)
async def test_no_spelling_leaves_the_folder(written: str, named: Path) -> None:
    (named.parent / "out.png").write_bytes(RED)
    (named / "up").symlink_to(named.parent)
    messages = []
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            await PictureSources((named,)).read(written)
        messages.append(refused.value.message)
        (named.parent / "out.png").unlink(missing_ok=True)
    assert messages[0] == messages[1], "whether there is such a file"


@pytest.mark.parametrize("swapped", ["deep", "deep/red.png"])
async def test_a_link_made_after_the_check_is_not_followed(
    swapped: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = folder.parent / "secret"
    (secret / "deep").mkdir(parents=True)
    (secret / "deep" / "red.png").write_bytes(RED + b"secret")

    def find_then_swap(folders: Sequence[Path], reference: str) -> tuple[Path, Path] | None:
        found = image_paths.find_file(folders, reference)
        (folder / swapped).rename(folder / "moved")
        (folder / swapped).symlink_to(secret / swapped)
        return found

    monkeypatch.setattr(references, "find_file", find_then_swap)
    with pytest.raises(InvalidRequest, match="no readable picture"):
        await PictureSources((folder,)).read("deep/red.png")


@pytest.mark.parametrize(
    ("url", "posix", "windows"),
    [
        ("file:///home/me/My%20Pictures", "/home/me/My Pictures", r"\home\me\My Pictures"),
        ("file:///c%3A/temp", "/c:/temp", r"c:\temp"),
        ("file:///C:/a%20b", "/C:/a b", r"C:\a b"),
        ("file:///c%3A", "/c:", "c:\\"),
        ("file://server/share/x", None, r"\\server\share\x"),
        ("file://localhost/x", "/x", r"\x"),
        ("file:///a#b?c", "/a#b?c", r"\a#b?c"),
        ("FILE:///a", "/a", r"\a"),
        ("file://", None, None),
        ("vscode-remote://ssh/home", None, None),
        ("file://[", None, None),
        ("", None, None),
    ],
)
def test_paths_of_file_urls(url: str, posix: str | None, windows: str | None) -> None:
    assert path_of_file_url(url, windows=False) == posix
    assert path_of_file_url(url, windows=True) == windows


async def test_bare_base64_is_an_image() -> None:
    for text in (
        base64.b64encode(RED).decode(),
        base64.encodebytes(RED).decode(),
        f'"{base64.b64encode(RED).decode()}"',
    ):
        assert (await PictureSources().read(text)).data == RED


@pytest.mark.parametrize(
    ("name", "expected"),
    [("image_1", True), ("image_12", True), ("image_0", False), ("image_", False), ("image_1.png", False), ("", False)],
)
def test_handles(name: str, expected: bool) -> None:
    assert is_handle(name) is expected
