"""Keys in a file: made, shown, revoked, read again while the server runs."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from minigpt4_serve.cli import app
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.server.keys.key_ring import KeyLimits, KeyRing, add_key, read_keys, revoke_key


class Clock:
    """Time that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_stored_as_a_hash_that_only_its_owner_can_read(file: Path) -> None:
    key = add_key(file, "alice", KeyLimits(requests_per_minute=5))
    assert len(key) > 50
    text = file.read_text()
    assert key not in text
    assert key.rpartition("_")[2] not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name], "no temporary file remains"
    (stored,) = read_keys(file)
    assert (stored.name, stored.limits.requests_per_minute) == ("alice", 5)
    found = KeyRing(file, None).find(key)
    assert found == stored


def test_only_the_whole_key_opens(file: Path) -> None:
    key = add_key(file, "alice", KeyLimits())
    other = add_key(file, "bob", KeyLimits())
    ring = KeyRing(file, SecretStr("sesame"))
    _, identity, secret = key.split("_", 2)
    wrong = ["", "x", key[:-1], key + "x", key.upper(), identity, secret, f"mg4_{identity}_", f"x_{identity}_{secret}"]
    wrong += [
        f"mg4_{other.split('_')[1]}_{secret}",
        read_keys(file)[0].sha256,
        "sesam",
        "mg4_settings_sesame",
        "é\udcff",
    ]
    assert [candidate for candidate in wrong if ring.find(candidate)] == []
    assert ring.find("sesame")
    assert ring.find(other).name == "bob"  # type: ignore[union-attr]


def test_key_changes_are_seen_soon_but_not_checked_each_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = add_key(file, "alice", KeyLimits())
    clock = Clock()
    ring = KeyRing(file, None, clock)
    second = add_key(file, "bob", KeyLimits())
    assert ring.find(second) is None
    clock.now += 1.1
    assert ring.find(second)
    revoke_key(file, "alice")
    clock.now += 1.1
    assert ring.find(first) is None
    assert ring.find(second)
    looked: list[int] = []
    real = os.stat
    monkeypatch.setattr(Path, "stat", lambda self, **_: looked.append(1) or real(self))
    for _ in range(100):
        ring.find(second)
    assert looked == []


def test_a_damaged_file_keeps_its_keys_and_a_missing_has_none(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = add_key(file, "alice", KeyLimits())
    clock = Clock()
    ring = KeyRing(file, None, clock)
    file.write_text('{"keys": [')
    clock.now += 2
    assert ring.find(key)
    assert "stay valid" in caplog.text
    file.unlink()
    clock.now += 2
    assert ring.find(key) is None


def test_a_server_without_any_key_does_not_start(file: Path) -> None:
    with pytest.raises(InvalidRequest, match="keys add"):
        KeyRing(file, None)
    add_key(file, "alice", KeyLimits())
    revoke_key(file, "alice")
    with pytest.raises(InvalidRequest, match="no key"):
        KeyRing(file, None)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"keys": 5}', '{"keys": [{"id": "a"}]}', '{"other": []}', "\x00", '{"keys": [{"id": "A B"}]}'],
)
def test_what_is_no_keys_file(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"can't be read") as refused:
        read_keys(file)
    assert text not in refused.value.message or not text


def test_names_are_unique_and_unknown_ones_refused(file: Path) -> None:
    add_key(file, "alice", KeyLimits())
    for wrong, why in (("alice", "a key 'alice' already"), ("", "1 to 100 characters"), ("x" * 101, "1 to 100")):
        with pytest.raises(InvalidRequest, match=why):
            add_key(file, wrong, KeyLimits())
    assert [key.name for key in read_keys(file)] == ["alice"]
    with pytest.raises(InvalidRequest, match="no key 'bob'"):
        revoke_key(file, "bob")
    assert revoke_key(file, read_keys(file)[0].id).name == "alice"


def test_two_commands_at_once_lose_no_key(file: Path) -> None:
    threads = [threading.Thread(target=add_key, args=(file, f"user {i}", KeyLimits())) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(file)) == 12


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    add_key(real, "alice", KeyLimits())
    file.symlink_to(real)
    add_key(file, "bob", KeyLimits())
    assert file.is_symlink()
    assert len(read_keys(real)) == 2


def test_the_commands(file: Path) -> None:
    runner = CliRunner()

    def run(*words: str) -> str:
        done = runner.invoke(app, ["keys", *words, "--keys-file", str(file)])
        assert done.exit_code == 0, done.output
        return done.stdout

    key = run("add", "alice", "--requests-per-minute", "60", "--images-per-day", "0").strip()
    assert KeyRing(file, None).find(key)
    shown = run("list")
    assert key not in shown
    header, row = shown.splitlines()
    assert header.split() == ["NAME", "ID", "CREATED", "REQUESTS/MIN", "CONCURRENT", "IMAGES/DAY"]
    assert row.split()[3:] == ["60", "–", "0"]
    run("revoke", "alice")
    assert json.loads(file.read_text()) == {"keys": []}
