"""The folder of a local server: its mode, its length, and what servers left that were killed."""

import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server import private_folder
from minigpt4_serve.server.private_folder import PrivateFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither modes nor Unix sockets")

OWNER = """
import subprocess, sys, time
from minigpt4_serve.server.private_folder import PrivateFolder
folder = PrivateFolder()
(folder.path / "ray").mkdir()
log = open(folder.path / "ray" / "agent.out", "w")
agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=log)
print(folder.path, agent.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of this test, and the only one with a short path."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    short = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))
    monkeypatch.setattr(private_folder, "_short_bases", lambda: [short])
    yield tmp_path
    shutil.rmtree(short)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may still be listed."""
    try:
        return bool(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return False


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.parametrize("name", ["t", "long" * 20, "a folder/with é"])
def test_any_temporary_folder_gives_private_short_paths(
    base: Path, name: str, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(base / name))
    before = os.umask(umask)
    try:
        folder = PrivateFolder()
    finally:
        os.umask(before)
    assert base / name in folder.path.resolve().parents
    for made in (folder.path.resolve(), folder.path.absolute().parent if folder.path.is_symlink() else folder.path):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    sockets = folder.path / "ray" / "session_2026-01-01_00-00-00_000000_1234567" / "sockets"
    sockets.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sockets / "plasma_store"))
    folder.close()
    folder.close()
    assert list((base / name).iterdir()) == []
    assert list(private_folder._short_bases()[0].iterdir()) == []


def test_the_temporary_folder_of_the_system_is_the_default(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    folder = PrivateFolder()
    assert base in folder.path.resolve().parents
    folder.close()


@pytest.mark.parametrize("long", [False, True])
def test_leftovers_of_a_killed_server_are_removed(base: Path, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(base / ("long" * 20)) if long else str(base))
    program = OWNER.replace(
        "folder = ", f"import os; os.environ['RAY_TMPDIR'] = {os.environ['RAY_TMPDIR']!r}\nfolder = "
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path, _, agent = owner.stdout.readline().strip().rpartition(" ")
        first = PrivateFolder()
        assert Path(path, "ray", "agent.out").exists(), "its server runs"
        assert _runs(int(agent))
        owner.kill()
    second = PrivateFolder()
    assert not Path(path).exists()
    assert not _runs(int(agent))
    assert first.path.is_dir(), "this process's own"
    first.close()
    second.close()


def test_logs_of_a_failed_start_stay_until_the_next(base: Path) -> None:
    folder = PrivateFolder()
    (folder.path / "raylet.out").write_text("why")
    folder.close(keep=True)
    assert (folder.path / "raylet.out").read_text() == "why"
    PrivateFolder().close()
    assert list(base.iterdir()) == []


def test_what_is_not_a_servers_stays(base: Path) -> None:
    (base / "minigpt4-other").mkdir()
    (base / "minigpt4-other" / "file").touch()
    (base / "minigpt4-file").touch()
    (base / "minigpt4-link").symlink_to(base / "minigpt4-other")
    PrivateFolder().close()
    assert len(list(base.iterdir())) == 3
    assert (base / "minigpt4-other" / "file").exists()


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "is full"), (errno.EROFS, "set TMPDIR")])
def test_a_folder_that_cannot_be_made_is_one_sentence(
    base: Path, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(number, "no")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(EngineFailed, match=words):
        PrivateFolder()


def test_a_file_in_place_of_the_folder_is_one_sentence(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(base / "file"))
    with pytest.raises(EngineFailed, match="set TMPDIR"):
        PrivateFolder()
