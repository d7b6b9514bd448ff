"""Settings, texts, access, counters, pseudonyms and logs: what the bots know before any platform is there."""

import importlib
import io
import logging
import os
import sqlite3
import string
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from minigpt4_bots.core.access import Asker, Gate, Refusal
from minigpt4_bots.core.privacy import HideSecrets, LogLevel, Pseudonyms, set_up_logging
from minigpt4_bots.core.settings import AccessSettings, BotSettings, Ids, LimitSettings, read_bot_settings
from minigpt4_bots.core.storage import Storage
from minigpt4_bots.core.texts import Texts, choose_language, languages

from minigpt4_serve.errors import InvalidRequest

TOKEN = "123456789:AAE-secret_secret_secret_secret_12345"


def settings_of(folder: Path, text: str, **environment: str) -> BotSettings:
    file = folder / "bot.yaml"
    file.write_text(text)
    return read_bot_settings(file, environment)


def test_defaults_need_no_file() -> None:
    settings = read_bot_settings(None, {})
    assert settings.server.base_url == "http://127.0.0.1:8000/v1"
    assert settings.telegram.token is None


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    text = "telegram: {token: from-file}\nserver: {base_url: 'http://file/v1', api_key: a}"
    settings = settings_of(
        tmp_path, text, TELEGRAM_TOKEN=TOKEN, MINIGPT4_BASE_URL="http://env/v1/", MINIGPT4_API_KEY=""
    )
    assert settings.telegram.token is not None
    assert settings.telegram.token.get_secret_value() == TOKEN
    assert settings.server.base_url == "http://env/v1"
    assert settings.server.api_key is not None
    assert settings.server.api_key.get_secret_value() == "a"
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("telegrm: {}", "telegrm: there is no such setting"),
        ("access: {allow: {user: [1]}}", "access.allow.user: there is no such setting"),
        ("limits: {user_per_minute: many}", "limits.user_per_minute"),
        ("limits: {user_per_day: -1}", "limits.user_per_day"),
        ("language: tlh", "language: must be auto or one of en, zh"),
        ("server: {base_url: 'ftp://x'}", "server.base_url: must be an address such as http"),
        ("server: {base_url: 'http://'}", "server.base_url: must be an address such as http"),
        ("telegram: {webhook: {secret: 'no spaces'}}", "telegram.webhook.secret: must be 1 to 256"),
        ("[1, 2]", "must hold keys and values"),
        ("a: [", "can't be read as YAML"),
        ("telegram: 5", "telegram"),
        ("access: {admins: 5}", "access.admins"),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settings_of(tmp_path, text, TELEGRAM_TOKEN=TOKEN)
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize("name", ["discord", "telegram"])
def test_a_missing_library_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, f"minigpt4_bots.{name}.connection", None)
    monkeypatch.setenv(f"{name.upper()}_TOKEN", "x")
    monkeypatch.setattr(sys, "argv", [f"minigpt4-{name}"])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit, match="1"):
        importlib.import_module(f"minigpt4_bots.{name}.cli").main()
    assert capsys.readouterr().err == f"The bot's library is missing: pip install 'minigpt4-serve[{name}]'.\n"


@pytest.mark.parametrize("name", ["discord", "telegram"])
@pytest.mark.parametrize(("level", "known"), [("WARNING", True), ("debug", True), ("loud", False)])
def test_an_unknown_log_level_is_refused(
    name: str, level: str, known: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(f"{name.upper()}_TOKEN", raising=False)
    monkeypatch.setattr(sys, "argv", [f"minigpt4-{name}", "--log-level", level])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"minigpt4_bots.{name}.cli").main()
    said = capsys.readouterr().err
    assert ended.value.code == (1 if known else 2)
    assert ("Set " if known else "'loud' is not one of") in said


def test_log_levels_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, level, **_: levels.append(level))
    for level in LogLevel:
        set_up_logging(level, [])
    assert len(set(levels)) == len(LogLevel) >= 4
    assert set(levels) <= set(logging.getLevelNamesMapping())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no settings file"):
        read_bot_settings(tmp_path / "nothing.yaml", {})


@pytest.mark.parametrize(
    ("given", "base", "files"),
    [
        ("http://h:8081/bot", "http://h:8081/bot", "http://h:8081/file/bot"),
        ("http://h:8081", "http://h:8081/bot", "http://h:8081/file/bot"),
        ("http://h:8081/", "http://h:8081/bot", "http://h:8081/file/bot"),
    ],
)
def test_addresses_of_a_local_bot_api_server(given: str, base: str, files: str) -> None:
    telegram = read_bot_settings(None, {"TELEGRAM_BASE_URL": given}).telegram
    assert (telegram.base_url, telegram.file_url) == (base, files)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("https://h/", "https://h/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/proxied/v1", "https://h/proxied/v1"),
    ],
)
def test_the_servers_address_is_completed_as_everywhere(given: str, asked: str) -> None:
    assert read_bot_settings(None, {"MINIGPT4_BASE_URL": given}).server.base_url == asked


@pytest.mark.parametrize("given", ["http://f", "http://f/file", "http://f/file/bot", "http://f/file/bot/"])
def test_the_address_of_files_may_be_another(given: str) -> None:
    assert read_bot_settings(None, {"TELEGRAM_BASE_FILE_URL": given}).telegram.file_url == "http://f/file/bot"


@pytest.mark.parametrize("name", ["discord", "telegram"])
def test_the_example_files_are_valid(name: str) -> None:
    file = Path(__file__).parents[3] / "configs" / f"{name}.yaml"
    settings = read_bot_settings(file, {})
    assert settings.model_fields_set == set(yaml.safe_load(file.read_text())) != set()


# Texts


def test_all_languages_say_the_same_things() -> None:
    folder = Path(__file__).parents[3] / "bots" / "minigpt4_bots" / "core" / "texts"
    catalogue = {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    assert set(catalogue) == set(languages()) == {"en", "zh"}

    def blanks(texts: dict[str, str]) -> dict[str, set[str | None]]:
        return {name: {blank for _, blank, _, _ in string.Formatter().parse(text)} for name, text in texts.items()}

    assert {name: found - {None} for name, found in blanks(catalogue["zh"]).items()} == {
        name: found - {None} for name, found in blanks(catalogue["en"]).items()
    }


@pytest.mark.parametrize(
    ("setting", "spoken", "language"),
    [("auto", "zh-CN", "zh"), ("auto", "pt_BR", "en"), ("auto", None, "en"), ("zh", "en", "zh"), ("en", "zh", "en")],
)
def test_each_person_reads_their_language(setting: str, spoken: str | None, language: str) -> None:
    assert choose_language(setting, spoken) == language


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (8, "8 s"), (8.4, "9 s"), (89, "89 s"), (100, "2 min"), (3600, "60 min"), (18_100, "6 h")],
)
def test_waits_are_told_as_people_do(seconds: float, text: str) -> None:
    assert Texts("en").seconds(seconds) == text


# Access


ANNA = Asker("telegram", "1", "100", channel="100/7", roles=frozenset({"staff"}))
ANNA_ALONE = Asker("telegram", "1", "1", private=True)


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def gate_of(folder: Path, clock: Clock | None = None, **changes: Any) -> Gate:
    settings = BotSettings(database=folder / "bots.sqlite3", **changes)
    return Gate(settings, Storage(settings.database), Pseudonyms.beside(settings.database), clock=clock or Clock())


@pytest.mark.parametrize(
    ("access", "asker", "allowed"),
    [
        ({}, ANNA, True),
        ({"allow": {"users": [1]}}, ANNA, True),
        ({"allow": {"users": [2]}}, ANNA, False),
        ({"allow": {"roles": ["staff"]}}, ANNA, True),
        ({"allow": {"roles": ["boss"]}}, ANNA, False),
        ({"allow": {"chats": [100]}}, ANNA, True),
        ({"allow": {"chats": [101]}}, ANNA, False),
        ({"allow": {"channels": ["100/7"]}}, ANNA, True),
        ({"allow": {"channels": ["100/8"]}}, ANNA, False),
        ({"allow": {"channels": ["5"]}}, replace(ANNA, channel="6", parent_channel="5"), True),
        ({"allow": {"users": [1], "chats": [101]}}, ANNA, False),
        ({"allow": {"users": [1], "chats": [101]}}, ANNA_ALONE, True),
        ({"allow": {"chats": [101]}}, ANNA_ALONE, False),
        ({"deny": {"users": [1]}}, ANNA, False),
        ({"deny": {"users": [1]}, "allow": {"users": [1]}}, ANNA, False),
        ({"deny": {"roles": ["staff"]}}, ANNA, False),
        ({"deny": {"chats": [100]}}, ANNA, False),
        ({"deny": {"channels": ["100/7"]}}, ANNA, False),
        ({"deny": {"users": [1]}, "admins": [1]}, ANNA, True),
        ({"private_chats": False}, ANNA_ALONE, False),
        ({"private_chats": False}, ANNA, True),
    ],
)
def test_lists(tmp_path: Path, access: dict[str, Any], asker: Asker, allowed: bool) -> None:
    gate = gate_of(tmp_path, access=AccessSettings.model_validate(access))
    assert gate.is_allowed(asker) is allowed
    assert (gate.check(asker) is None) is allowed


def test_the_minute_limit_refuses_with_the_wait(tmp_path: Path) -> None:
    clock = Clock()
    gate = gate_of(tmp_path, clock, limits=LimitSettings(user_per_minute=2))
    for _ in range(2):
        assert gate.check(ANNA) is None
        gate.enter(ANNA)
        clock.now += 10
    assert gate.check(ANNA) == Refusal("refused.user_minute", 40.0)
    assert gate.check(replace(ANNA, user="2")) is None
    clock.now += 41
    assert gate.check(ANNA) is None


def test_a_chat_has_limits_of_its_own(tmp_path: Path) -> None:
    gate = gate_of(tmp_path, limits=LimitSettings(chat_per_minute=1, chat_per_day=None))
    gate.enter(ANNA)
    refusal = gate.check(replace(ANNA, user="2"))
    assert refusal is not None
    assert refusal.text == "refused.chat_minute"
    assert gate.check(replace(ANNA, chat="200")) is None


def test_a_day_ends_at_midnight_utc(tmp_path: Path) -> None:
    clock = Clock(86400.0 * 100 + 80_000)
    gate = gate_of(tmp_path, clock, limits=LimitSettings(user_per_minute=None, user_per_day=1))
    gate.enter(ANNA)
    assert gate.check(ANNA) == Refusal("refused.user_day", 6400.0)
    clock.now += 6401
    assert gate.check(ANNA) is None


def test_nothing_is_allowed_by_a_limit_of_zero(tmp_path: Path) -> None:
    refusal = gate_of(tmp_path, limits=LimitSettings(user_per_minute=0)).check(ANNA)
    assert refusal is not None


def test_admins_know_no_limits_and_failures_do_not_count(tmp_path: Path) -> None:
    gate = gate_of(tmp_path, limits=LimitSettings(user_per_day=1), access=AccessSettings(admins=frozenset({"9"})))
    for _ in range(3):
        gate.enter(replace(ANNA, user="9"))
    assert gate.check(replace(ANNA, user="9")) is None
    gate.withdraw(gate.enter(ANNA))
    assert gate.check(ANNA) is None


def test_counters_survive_a_restart_and_are_shared(tmp_path: Path) -> None:
    limits = LimitSettings(user_per_day=2)
    one, other = gate_of(tmp_path, limits=limits), gate_of(tmp_path, limits=limits)
    one.enter(ANNA)
    other.enter(ANNA)
    assert one.check(ANNA) is not None
    assert gate_of(tmp_path, limits=limits).check(ANNA) is not None


def test_lists_are_read_again_when_the_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "bot.yaml"
    file.write_text("access: {}")
    settings = BotSettings(database=tmp_path / "bots.sqlite3")
    gate = Gate(settings, Storage(settings.database), Pseudonyms.beside(settings.database), file=file, clock=Clock())
    assert gate.is_allowed(ANNA)
    file.write_text("access: {deny: {users: [1]}}")
    assert not gate.is_allowed(ANNA)
    file.write_text("access: {deny: {usrs: []}} # misspelt")
    assert not gate.is_allowed(ANNA)
    assert "access.deny.usrs" in caplog.text
    file.write_text("access: {deny: {users: []}}")
    assert gate.is_allowed(ANNA)


def test_ids_may_be_numbers_or_words() -> None:
    assert Ids.model_validate({"users": [1, "2", -100]}).users == {"1", "2", "-100"}


# Privacy and storage


def test_pseudonyms_hide_ids_and_stay_the_same(tmp_path: Path) -> None:
    names = Pseudonyms.beside(tmp_path / "db")
    again = Pseudonyms.beside(tmp_path / "db")
    assert names.of("telegram", "user", "123456") == again.of("telegram", "user", "123456")
    assert names.of("telegram", "user", "123456") != names.of("discord", "user", "123456")
    assert names.of("telegram", "user", "123456") != Pseudonyms(b"x" * 32).of("telegram", "user", "123456")
    assert (tmp_path / "db.key").stat().st_mode & 0o777 == 0o600


def test_sealed_texts_open_with_their_key_only() -> None:
    names = Pseudonyms(b"k" * 32)
    text = "chat 123456789 " * 10
    sealed = names.seal(text)
    assert b"123456789" not in sealed
    assert sealed != names.seal(text)
    assert names.unseal(sealed) == text
    for wrong in (
        Pseudonyms(b"o" * 32).unseal,
        lambda data: names.unseal(data[:-1] + b"?"),
        lambda _: names.unseal(b""),
    ):
        with pytest.raises(ValueError, match="sealed"):
            wrong(sealed)


def test_the_database_holds_no_ids(tmp_path: Path) -> None:
    gate = gate_of(tmp_path)
    asker = replace(ANNA, user="555123456", chat="-100987654")
    gate.enter(asker)
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("bots.sqlite3*"))
    assert b"asked" in stored  # the table of questions
    with sqlite3.connect(tmp_path / "bots.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM asked").fetchone() == (1,)
    connection.close()
    assert b"555123456" not in stored
    assert b"100987654" not in stored


def test_unfinished_answers_are_found_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    first = storage.begin_answer(platform="telegram", user="u", place=b"1")
    second = storage.begin_answer(platform="telegram", user="u", place=b"2")
    storage.begin_answer(platform="discord", user="u", place=b"3")
    storage.move_answer(second, b"2b")
    storage.finish_answer(first)
    again = Storage(tmp_path / "db").unfinished_answers("telegram")
    assert [(one.id, one.place) for one in again] == [(second, b"2b")]


def test_a_database_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("this is no database, it is long enough to be taken for one, is it not? " * 30)
    with pytest.raises(InvalidRequest, match="database"):
        Storage(tmp_path / "db")


def test_old_questions_are_not_kept(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    storage.record_question(user="u", chat="c", at=0.0)
    storage.record_question(user="u", chat="c", at=3 * 86400.0)
    with sqlite3.connect(tmp_path / "db") as connection:
        assert connection.execute("SELECT count(*) FROM asked").fetchone() == (1,)
    connection.close()


def test_facts_are_replaced(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    assert storage.fact("commands") is None
    storage.remember_fact("commands", "1")
    storage.remember_fact("commands", "2")
    assert storage.fact("commands") == "2"


@pytest.mark.parametrize(
    "message",
    [f"POST https://api.telegram.org/bot{TOKEN}/getMe", "key sk-secret-key-1234", "another 987654321:" + "B" * 35],
)
def test_logs_hold_no_secrets(message: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(HideSecrets([TOKEN, "sk-secret-key-1234"]))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info("%s", message)
    try:
        raise ValueError(message)
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "***" in text
    assert "ValueError" in text
    for secret in (TOKEN, "sk-secret", "B" * 35):
        assert secret not in text


def test_the_key_is_made_once_by_whoever_is_first(tmp_path: Path) -> None:
    first = Pseudonyms.beside(tmp_path / "sub" / "db")
    assert first.of("a", "b", "c") == Pseudonyms.beside(tmp_path / "sub" / "db").of("a", "b", "c")
    assert os.listdir(tmp_path / "sub") == ["db.key"]  # noqa: PTH208


def test_the_key_needs_no_hard_links_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr("minigpt4_bots.core.privacy._OTHER_BOT_WRITES_S", 60.0)
    assert Pseudonyms.beside(tmp_path / "one").of("a", "b", "c")
    # The other bot has made the file, and writes into it only now.
    (tmp_path / "two.key").touch()
    writing = threading.Timer(0.1, lambda: (tmp_path / "two.key").write_bytes(b"k" * 32))
    writing.start()
    assert Pseudonyms.beside(tmp_path / "two").of("a", "b", "c") == Pseudonyms(b"k" * 32).of("a", "b", "c")
    writing.join()


@pytest.mark.parametrize("trouble", ["a folder", "a file in the way", "half a key"])
def test_a_key_that_can_not_be_used_is_named(tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        Pseudonyms.beside(database)


def test_a_disk_that_is_full_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> bytes:
        raise OSError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr("minigpt4_bots.core.privacy.secrets.token_bytes", fail)
        with pytest.raises(InvalidRequest, match="key file"):
            Pseudonyms.beside(tmp_path / "db")
    assert Pseudonyms.beside(tmp_path / "db").of("a", "b", "c")
