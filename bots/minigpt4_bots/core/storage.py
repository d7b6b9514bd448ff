"""The SQLite database that survives restarts: times of questions by pseudonym, and unfinished answers. No contents.

It stores hashes and encrypted notes, never an id. Both bots may use one file at the same time. Each call is a short
transaction; what it wrote survives kill -9.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from minigpt4_serve.errors import InvalidRequest

__all__ = ["Storage", "UnfinishedAnswer"]

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


@dataclass(frozen=True)
class UnfinishedAnswer:
    """An answer that had begun. ``note`` holds its encrypted location."""

    id: int
    user: str
    note: bytes


class Storage:
    """The database of both bots."""

    def __init__(self, file: Path) -> None:
        """Open or create the database.

        Raises:
            InvalidRequest: the file can't be opened or is no database.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is a transaction. The timeout covers transactions of the other bot.
            self._connection = sqlite3.connect(file, timeout=10, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise InvalidRequest(
                f"The database {file} can't be used. Set 'database' to a file in a folder that the bot may write."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def record_question(self, *, user: str, chat: str, at: float) -> int:
        """Count a question at time ``at`` (seconds since the epoch); returns its number."""
        self._connection.execute("DELETE FROM asked WHERE at < ?", (at - _TWO_DAYS_S,))
        row = self._connection.execute("INSERT INTO asked (user, chat, at) VALUES (?, ?, ?)", (user, chat, at))
        assert row.lastrowid is not None
        return row.lastrowid

    def withdraw_question(self, number: int) -> None:
        """Remove a question from the count."""
        self._connection.execute("DELETE FROM asked WHERE id = ?", (number,))

    def user_times(self, user: str, since: float) -> list[float]:
        """Times of the user's questions after ``since``, oldest first."""
        return self._times("SELECT at FROM asked WHERE user = ? AND at > ? ORDER BY at", user, since)

    def chat_times(self, chat: str, since: float) -> list[float]:
        """Times of all questions in the chat after ``since``, oldest first."""
        return self._times("SELECT at FROM asked WHERE chat = ? AND at > ? ORDER BY at", chat, since)

    def _times(self, query: str, key: str, since: float) -> list[float]:
        return [float(at) for (at,) in self._connection.execute(query, (key, since))]

    def begin_answer(self, *, platform: str, user: str, note: bytes) -> int:
        """Record that an answer begins; returns its number."""
        row = self._connection.execute(
            "INSERT INTO pending (platform, user, place) VALUES (?, ?, ?)", (platform, user, note)
        )
        assert row.lastrowid is not None
        return row.lastrowid

    def update_answer(self, number: int, note: bytes) -> None:
        """Replace the note of an unfinished answer."""
        self._connection.execute("UPDATE pending SET place = ? WHERE id = ?", (note, number))

    def finish_answer(self, number: int) -> None:
        """Remove an answer that is complete, or whose interruption was explained."""
        self._connection.execute("DELETE FROM pending WHERE id = ?", (number,))

    def unfinished_answers(self, platform: str) -> list[UnfinishedAnswer]:
        """The answers that an earlier process of this platform's bot left unfinished."""
        rows = self._connection.execute("SELECT id, user, place FROM pending WHERE platform = ?", (platform,))
        return [UnfinishedAnswer(int(number), str(user), bytes(note)) for number, user, note in rows]

    def fact(self, name: str) -> str | None:
        """A value stored by ``store_fact``, such as the digest of the last published commands."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def store_fact(self, name: str, value: str) -> None:
        """Store a value, replacing an earlier one."""
        self._connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))
