"""The database."""

import sqlite3
from pathlib import Path

import pytest
from minigpt4_bots.core.storage import Storage

from minigpt4_serve.errors import InvalidRequest


def test_unfinished_answers_are_found_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "db")
    first = storage.begin_answer(platform="telegram", user="u", note=b"1")
    second = storage.begin_answer(platform="telegram", user="u", note=b"2")
    storage.begin_answer(platform="discord", user="u", note=b"3")
    storage.update_answer(second, b"2b")
    storage.finish_answer(first)
    again = Storage(tmp_path / "db").unfinished_answers("telegram")
    assert [(one.id, one.note) for one in again] == [(second, b"2b")]


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
    storage.store_fact("commands", "1")
    storage.store_fact("commands", "2")
    assert storage.fact("commands") == "2"
