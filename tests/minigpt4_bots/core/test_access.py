"""Access lists and limits."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from minigpt4_bots.core.access import AccessControl, Denial, DenialReason, Requester
from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.settings import AccessSettings, BotSettings, IdLists, LimitSettings
from minigpt4_bots.core.storage import Storage

ANNA = Requester("telegram", "1", "100", channel="100/7", roles=frozenset({"staff"}))
ANNA_ALONE = Requester("telegram", "1", "1", private=True)


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_access_control(folder: Path, clock: Clock | None = None, **changes: Any) -> AccessControl:
    settings = BotSettings(database=folder / "bots.sqlite3", **changes)
    return AccessControl(
        settings, Storage(settings.database), Pseudonyms.from_key_file(settings.database), clock=clock or Clock()
    )


@pytest.mark.parametrize(
    ("lists", "requester", "allowed"),
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
async def test_lists(tmp_path: Path, lists: dict[str, Any], requester: Requester, allowed: bool) -> None:
    access = make_access_control(tmp_path, access=AccessSettings.model_validate(lists))
    assert access.is_allowed(requester) is allowed
    assert (await access.check(requester) is None) is allowed


async def test_the_minute_limit_denies_with_the_wait(tmp_path: Path) -> None:
    clock = Clock()
    access = make_access_control(tmp_path, clock, limits=LimitSettings(user_per_minute=2))
    for _ in range(2):
        assert await access.check(ANNA) is None
        await access.count_question(ANNA)
        clock.now += 10
    assert await access.check(ANNA) == Denial(DenialReason.USER_PER_MINUTE, 40.0)
    assert await access.check(replace(ANNA, user="2")) is None
    clock.now += 41
    assert await access.check(ANNA) is None


async def test_chats_have_limits_of_their_own(tmp_path: Path) -> None:
    access = make_access_control(tmp_path, limits=LimitSettings(chat_per_minute=1, chat_per_day=None))
    await access.count_question(ANNA)
    denial = await access.check(replace(ANNA, user="2"))
    assert denial is not None
    assert denial.reason is DenialReason.CHAT_PER_MINUTE
    assert await access.check(replace(ANNA, chat="200")) is None


async def test_a_day_ends_at_midnight_utc(tmp_path: Path) -> None:
    clock = Clock(86400.0 * 100 + 80_000)
    access = make_access_control(tmp_path, clock, limits=LimitSettings(user_per_minute=None, user_per_day=1))
    await access.count_question(ANNA)
    assert await access.check(ANNA) == Denial(DenialReason.USER_PER_DAY, 6400.0)
    clock.now += 6401
    assert await access.check(ANNA) is None


async def test_a_limit_of_zero_allows_nothing(tmp_path: Path) -> None:
    denial = await make_access_control(tmp_path, limits=LimitSettings(user_per_minute=0)).check(ANNA)
    assert denial is not None


async def test_admins_have_no_limits_and_failures_do_not_count(tmp_path: Path) -> None:
    access = make_access_control(
        tmp_path, limits=LimitSettings(user_per_day=1), access=AccessSettings(admins=frozenset({"9"}))
    )
    for _ in range(3):
        await access.count_question(replace(ANNA, user="9"))
    assert await access.check(replace(ANNA, user="9")) is None
    access.withdraw_question(await access.count_question(ANNA))
    assert await access.check(ANNA) is None


async def test_counters_survive_a_restart_and_are_shared(tmp_path: Path) -> None:
    limits = LimitSettings(user_per_day=2)
    one = make_access_control(tmp_path, limits=limits)
    other = make_access_control(tmp_path, limits=limits)
    await one.count_question(ANNA)
    await other.count_question(ANNA)
    assert await one.check(ANNA) is not None
    assert await make_access_control(tmp_path, limits=limits).check(ANNA) is not None


def test_lists_are_reloaded_when_the_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "bot.yaml"
    file.write_text("access: {}")
    settings = BotSettings(database=tmp_path / "bots.sqlite3")
    access = AccessControl(
        settings, Storage(settings.database), Pseudonyms.from_key_file(settings.database), file=file, clock=Clock()
    )
    assert access.is_allowed(ANNA)
    file.write_text("access: {deny: {users: [1]}}")
    assert not access.is_allowed(ANNA)
    file.write_text("access: {deny: {usrs: []}} # misspelled")
    assert not access.is_allowed(ANNA)
    assert "access.deny.usrs" in caplog.text
    file.write_text("access: {deny: {users: []}}")
    assert access.is_allowed(ANNA)


def test_ids_may_be_numbers_or_words() -> None:
    assert IdLists.model_validate({"users": [1, "2", -100]}).users == {"1", "2", "-100"}


async def test_the_database_holds_no_ids(tmp_path: Path) -> None:
    access = make_access_control(tmp_path)
    requester = replace(ANNA, user="555123456", chat="-100987654")
    await access.count_question(requester)
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("bots.sqlite3*"))  # noqa: ASYNC240
    assert b"asked" in stored  # the table of questions
    with sqlite3.connect(tmp_path / "bots.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM asked").fetchone() == (1,)
    connection.close()
    assert b"555123456" not in stored
    assert b"100987654" not in stored
