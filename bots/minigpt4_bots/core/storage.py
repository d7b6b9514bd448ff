"""The SQLite database that survives restarts: times of questions by pseudonym, and unfinished answers. No contents.

It stores hashes and encrypted notes, never an id. Both bots may use one file at the same time. Each call is a short
transaction; what it wrote survives kill -9.

SQLite runs in a thread of its own: the event loop doesn't wait while another process holds the file's lock.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minigpt4_serve.errors import InvalidRequest

__all__ = ["Storage", "UnfinishedAnswer"]

_log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS asked (id INTEGER PRIMARY KEY, user TEXT NOT NULL, chat TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS asked_user ON asked (user, at);
CREATE INDEX IF NOT EXISTS asked_chat ON asked (chat, at);
CREATE TABLE IF NOT EXISTS pending (
    id INTEGER PRIMARY KEY, platform TEXT NOT NULL, user TEXT NOT NULL, place BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_TWO_DAYS_S = 2 * 86400.0
_LOCK_S = 2.0  # wait for another process's transaction
_FAIL_FAST_S = 5.0  # after a wait that was too short, others don't wait
_OPEN_LOCK_S = 10.0  # at the start, where no one waits
_MAX_POSTPONED = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class UnfinishedAnswer:
    """An answer that had begun. ``note`` holds its encrypted location."""

    id: int
    user: str
    note: bytes


class Storage:
    """The database of both bots.

    Coroutines raise ``sqlite3.Error`` if the database can't be used, for example because another process holds its lock
    for more than two seconds. The other methods return at once; what they write is written in order, and again if it
    fails.
    """

    def __init__(self, file: Path) -> None:
        """Open or create the database; only this user can read a new one.

        Raises:
            InvalidRequest: the file can't be opened or is no database.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="minigpt4-database")
        self._postponed: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=_MAX_POSTPONED)
        self._locked_at = -_FAIL_FAST_S
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)  # SQLite's other two files get the same mode
            file.chmod(0o600)
            # Autocommit: each statement is a transaction. The timeout covers transactions of the other bot.
            self._connection = sqlite3.connect(
                file, timeout=_OPEN_LOCK_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise InvalidRequest(
                f"The database {file} can't be used. Set 'database' to a file in a folder that the bot may write."
            ) from error

    def close(self) -> None:
        """Write what is left, and close the file."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._thread.submit(self._close).result()
            self._thread.shutdown()

    def _close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._write_postponed()
        self._connection.close()

    async def record_question(self, *, user: str, chat: str, at: float) -> int:
        """Count a question at time ``at`` (seconds since the epoch); returns its number."""

        def record() -> int:
            self._connection.execute("DELETE FROM asked WHERE at < ?", (at - _TWO_DAYS_S,))
            return self._insert("INSERT INTO asked (user, chat, at) VALUES (?, ?, ?)", (user, chat, at))

        return await self._run(record)

    def withdraw_question(self, number: int) -> None:
        """Remove a question from the count."""
        self._write("DELETE FROM asked WHERE id = ?", (number,))

    async def user_times(self, user: str, since: float) -> list[float]:
        """Times of the user's questions after ``since``, oldest first."""
        return await self._times("SELECT at FROM asked WHERE user = ? AND at > ? ORDER BY at", user, since)

    async def chat_times(self, chat: str, since: float) -> list[float]:
        """Times of all questions in the chat after ``since``, oldest first."""
        return await self._times("SELECT at FROM asked WHERE chat = ? AND at > ? ORDER BY at", chat, since)

    async def _times(self, query: str, key: str, since: float) -> list[float]:
        return await self._run(lambda: [float(at) for (at,) in self._connection.execute(query, (key, since))])

    async def begin_answer(self, *, platform: str, user: str, note: bytes) -> int:
        """Record that an answer begins; returns its number."""
        statement = "INSERT INTO pending (platform, user, place) VALUES (?, ?, ?)"
        return await self._run(lambda: self._insert(statement, (platform, user, note)))

    def update_answer(self, number: int, note: bytes) -> None:
        """Replace the note of an unfinished answer."""
        self._write("UPDATE pending SET place = ? WHERE id = ?", (note, number))

    def finish_answer(self, number: int) -> None:
        """Remove an answer that is complete, or whose interruption was explained."""
        self._write("DELETE FROM pending WHERE id = ?", (number,))

    async def unfinished_answers(self, platform: str) -> list[UnfinishedAnswer]:
        """The answers that an earlier process of this platform's bot left unfinished."""
        query = "SELECT id, user, place FROM pending WHERE platform = ?"
        rows = await self._run(lambda: list(self._connection.execute(query, (platform,))))
        return [UnfinishedAnswer(int(number), str(user), bytes(note)) for number, user, note in rows]

    async def fact(self, name: str) -> str | None:
        """A value stored by ``store_fact``, such as the digest of the last published commands; None on errors, too."""
        query = "SELECT value FROM facts WHERE name = ?"
        try:
            row = await self._run(lambda: self._connection.execute(query, (name,)).fetchone())
        except sqlite3.Error:
            return None
        return None if row is None else str(row[0])

    def store_fact(self, name: str, value: str) -> None:
        """Store a value, replacing an earlier one."""
        self._write("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    async def _run(self, work: Callable[[], T]) -> T:
        """The result of ``work`` in the thread, after everything that was to be written before."""

        def run() -> T:
            self._write_postponed()
            return self._unless_locked(work)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        self._thread.submit(self._write_or_postpone, statement, values)

    def _write_or_postpone(self, statement: str, values: tuple[Any, ...]) -> None:
        self._postponed.append((statement, values))
        try:
            self._write_postponed()
        except sqlite3.Error as error:
            _log.warning("The database can't be written (%s). The next call tries again.", error)

    def _write_postponed(self) -> None:
        while self._postponed:
            statement, values = self._postponed[0]
            self._unless_locked(lambda: self._connection.execute(statement, values))  # noqa: B023 - called at once
            self._postponed.popleft()

    def _insert(self, statement: str, values: tuple[Any, ...]) -> int:
        row = self._connection.execute(statement, values)
        assert row.lastrowid is not None
        return row.lastrowid

    def _unless_locked(self, work: Callable[[], T]) -> T:
        """Run ``work``, which waits for the file's lock, unless a wait for it was in vain just before."""
        recently = time.monotonic() - self._locked_at < _FAIL_FAST_S
        self._connection.execute(f"PRAGMA busy_timeout = {0 if recently else int(_LOCK_S * 1000)}")
        try:
            result = work()
        except sqlite3.OperationalError:
            if not recently:
                self._locked_at = time.monotonic()
            raise
        self._locked_at = -_FAIL_FAST_S
        return result
