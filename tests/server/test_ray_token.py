"""The token of a local Ray cluster: in the server's own folder, and no other user of the machine may read it."""

import os
import stat
from pathlib import Path

import pytest

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server.ray.ray_token import provide_token, withdraw_token


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (home := tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "server").mkdir()
    return folder


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("at", ["{home}", "/nonexistent", "/dev/null", "", None])
def test_the_token_needs_no_home(at: str | None, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if at is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", at.format(home=home))
    before = os.umask(0)
    try:
        provide_token(folder)
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)
    assert _mode(file) == 0o600
    assert len(file.read_text()) == 64
    assert list(home.iterdir()) == []
    withdraw_token(folder)
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_each_server_has_its_own_token(folder: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    tokens = set()
    for each in (folder, other):
        provide_token(each)
        tokens.add(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text())
        withdraw_token(each)
    assert len(tokens) == 2


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666, 0o600])
def test_a_token_file_given_by_path_is_protected(
    mode: int, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "token"
    file.write_text("t")
    file.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    provide_token(folder)
    assert _mode(file) == 0o600
    assert file.read_text() == "t"
    assert list(folder.iterdir()) == []
    withdraw_token(folder)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)


def test_a_missing_token_file_is_named(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    with pytest.raises(EngineFailed, match=r"RAY_AUTH_TOKEN_PATH names .*none, which doesn't exist"):
        provide_token(folder)


@pytest.mark.parametrize("variable", [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_MODE", "disabled")])
def test_without_a_token_file_none_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    provide_token(folder)
    assert list(folder.iterdir()) == []
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_a_file_that_cannot_be_made_is_one_sentence(folder: Path) -> None:
    with pytest.raises(EngineFailed, match="token"):
        provide_token(folder / "none")
