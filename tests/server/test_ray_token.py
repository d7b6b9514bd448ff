"""The token of a local Ray cluster: no other user of the machine may read it."""

import os
import stat
from pathlib import Path

import pytest

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server.ray.ray_token import protect_token


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_new_token_is_readable_by_its_owner_only(home: Path) -> None:
    before = os.umask(0)
    try:
        protect_token()
    finally:
        os.umask(before)
    file = home / ".ray" / "auth_token"
    assert _mode(file) == 0o600
    assert _mode(file.parent) == 0o700
    assert len(file.read_text()) == 64
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666, 0o600])
def test_an_existing_token_stays_and_is_protected(home: Path, mode: int) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("a token of Ray's own")
    file.chmod(mode)
    protect_token()
    assert _mode(file) == 0o600
    assert file.read_text() == "a token of Ray's own"


def test_an_empty_token_file_is_filled(home: Path) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.touch()
    protect_token()
    assert len(file.read_text()) == 64
    assert _mode(file) == 0o600


def test_a_token_file_given_by_path_is_protected(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "token"
    file.write_text("t")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    protect_token()
    assert _mode(file) == 0o600
    assert not (home / ".ray").exists()


def test_a_missing_token_file_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    with pytest.raises(EngineFailed, match=r"RAY_AUTH_TOKEN_PATH names .*none, which doesn't exist"):
        protect_token()


@pytest.mark.parametrize("variable", [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_MODE", "disabled")])
def test_without_a_token_file_none_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    protect_token()
    assert not (home / ".ray").exists()


def test_a_file_that_cannot_be_made_is_one_sentence(home: Path) -> None:
    (home / ".ray").write_text("not a folder")
    with pytest.raises(EngineFailed, match="token"):
        protect_token()
