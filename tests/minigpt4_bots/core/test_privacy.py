"""Pseudonyms, sealed notes and their key file."""

import hashlib
import hmac
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from minigpt4_bots.core.privacy import Pseudonyms
from sealed_notes import seal_as_0_1_0

from minigpt4_serve.errors import InvalidRequest

ID = ("telegram", "user", "123456")


def test_pseudonyms_hide_ids_and_stay_the_same(tmp_path: Path) -> None:
    name = Pseudonyms.from_key_file(tmp_path / "db").pseudonym(*ID)
    assert name == Pseudonyms.from_key_file(tmp_path / "db").pseudonym(*ID)
    assert name != Pseudonyms.from_key_file(tmp_path / "db").pseudonym("discord", "user", "123456")
    assert name != Pseudonyms(b"x" * 32).pseudonym(*ID)
    assert (tmp_path / "db.key").stat().st_mode & 0o777 == 0o600


def test_pseudonyms_of_0_1_0_stay_the_same() -> None:
    # Counters in existing databases are stored by these.
    expected = hmac.new(b"k" * 32, b"telegram\0user\x00123456", hashlib.sha256).hexdigest()[:16]
    assert Pseudonyms(b"k" * 32).pseudonym(*ID) == expected


def test_sealed_texts_open_with_their_key_only() -> None:
    names = Pseudonyms(b"k" * 32)
    text = "chat 123456789 " * 10
    sealed = names.seal(text)
    assert b"123456789" not in sealed
    assert sealed != names.seal(text)
    assert names.unseal(sealed) == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]),
        lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:],
        lambda sealed: sealed[:5],
        lambda _: b"",
    ],
    ids=["tag", "nonce", "short", "empty"],
)
def test_damaged_notes_are_refused(damage: Callable[[bytes], bytes]) -> None:
    names = Pseudonyms(b"k" * 32)
    with pytest.raises(ValueError, match="sealed"):
        names.unseal(damage(names.seal("a note")))
    with pytest.raises(ValueError, match="sealed"):
        Pseudonyms(b"o" * 32).unseal(names.seal("a note"))


def test_notes_sealed_by_0_1_0_are_refused() -> None:
    key = b"k" * 32
    note = json.dumps({"place": "[1, null, null]", "message": None, "language": "en"})
    with pytest.raises(ValueError, match="another version"):
        Pseudonyms(key).unseal(seal_as_0_1_0(key, note))


def test_the_key_is_created_once(tmp_path: Path) -> None:
    name = Pseudonyms.from_key_file(tmp_path / "sub" / "db").pseudonym(*ID)
    assert name == Pseudonyms.from_key_file(tmp_path / "sub" / "db").pseudonym(*ID)
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["db.key"]


def test_the_key_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", fail)
    assert Pseudonyms.from_key_file(tmp_path / "db").pseudonym(*ID)


def test_a_key_that_another_bot_is_writing_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_bots.core.privacy._OTHER_BOT_WRITES_S", 60.0)
    (tmp_path / "db.key").touch()
    writing = threading.Timer(0.1, lambda: (tmp_path / "db.key").write_bytes(b"k" * 32))
    writing.start()
    assert Pseudonyms.from_key_file(tmp_path / "db").pseudonym(*ID) == Pseudonyms(b"k" * 32).pseudonym(*ID)
    writing.join()


@pytest.mark.parametrize("trouble", ["a folder", "a file in the way", "half a key"])
def test_an_unusable_key_file_is_named(tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_bots.core.privacy._OTHER_BOT_WRITES_S", 0.01)
    database = tmp_path / "sub" / "db"
    if trouble == "a file in the way":
        (tmp_path / "sub").touch()
    elif trouble == "a folder":
        (tmp_path / "sub" / "db.key").mkdir(parents=True)
    else:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "db.key").write_bytes(b"half")
    with pytest.raises(InvalidRequest, match=r"db\.key"):
        Pseudonyms.from_key_file(database)


def test_a_full_disk_leaves_no_incomplete_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> bytes:
        raise OSError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr("minigpt4_bots.core.privacy.secrets.token_bytes", fail)
        with pytest.raises(InvalidRequest, match="key file"):
            Pseudonyms.from_key_file(tmp_path / "db")
    assert Pseudonyms.from_key_file(tmp_path / "db").pseudonym(*ID)
