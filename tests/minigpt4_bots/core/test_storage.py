"""The database."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from minigpt4_bots.core.storage import Storage

from minigpt4_serve.errors import InvalidRequest


async def test_unfinished_answers_are_found_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    first = await storage.begin_answer(platform="telegram", user="u", note=b"1")
    second = await storage.begin_answer(platform="telegram", user="u", note=b"2")
    await storage.begin_answer(platform="discord", user="u", note=b"3")
    storage.update_answer(second, b"2b")
    storage.finish_answer(first)
    storage.close()
    again = await Storage(tmp_path / "db").unfinished_answers("telegram")
    assert [(one.id, one.note) for one in again] == [(second, b"2b")]


def test_a_database_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("this is no database, it is long enough to be taken for one, is it not? " * 30)
    with pytest.raises(InvalidRequest, match="database"):
        Storage(tmp_path / "db")


async def test_old_questions_are_not_kept(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    await storage.record_question(user="u", chat="c", at=0.0)
    await storage.record_question(user="u", chat="c", at=3 * 86400.0)
    with sqlite3.connect(tmp_path / "db") as connection:
        assert connection.execute("SELECT count(*) FROM asked").fetchone() == (1,)
    connection.close()


async def test_facts_are_replaced(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    assert await storage.fact("commands") is None
    storage.store_fact("commands", "1")
    storage.store_fact("commands", "2")
    assert await storage.fact("commands") == "2"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process's write lock, as a backup takes it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_a_lock_fails_without_stopping_the_event_loop(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    with locked(tmp_path / "db"):
        asking = [asyncio.create_task(storage.record_question(user="u", chat="c", at=float(i))) for i in range(20)]
        turns = 0
        while not all(task.done() for task in asking):
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 20, "other people's commands are answered meanwhile"
        assert all(isinstance(task.exception(), sqlite3.OperationalError) for task in asking)
        assert await storage.user_times("u", -1.0) == [], "reading needs no lock"
    assert await storage.record_question(user="u", chat="c", at=30.0)
    assert await storage.user_times("u", -1.0) == [30.0]


async def test_what_a_lock_prevented_is_written_later(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    number = await storage.record_question(user="u", chat="c", at=1.0)
    first, second, third = [await storage.begin_answer(platform="p", user="u", note=b"1") for _ in range(3)]
    with locked(tmp_path / "db"):
        storage.withdraw_question(number)
        storage.update_answer(second, b"2")
        storage.finish_answer(first)
        storage.store_fact("commands", "1")
    assert await storage.user_times("u", 0.0) == []
    assert [(one.id, one.note) for one in await storage.unfinished_answers("p")] == [(second, b"2"), (third, b"1")]
    assert await storage.fact("commands") == "1"
    with locked(tmp_path / "db"):
        storage.finish_answer(second)
    storage.close()
    assert [one.id for one in await Storage(tmp_path / "db").unfinished_answers("p")] == [third]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
async def test_only_this_user_can_read_the_files(tmp_path: Path) -> None:
    (tmp_path / "db").touch(mode=0o644)
    storage = Storage(tmp_path / "db")
    await storage.record_question(user="u", chat="c", at=1.0)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}  # noqa: PTH208
    assert modes == dict.fromkeys(("db", "db-wal", "db-shm"), 0o600)
