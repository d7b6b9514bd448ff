"""What survives a restart, in SQLite: when pseudonyms asked, and answers that are not finished yet. No contents.

Knows hashes and sealed bytes only, never an id. Both bots may use one file at the same time. Every call is a short
transaction; what returned is safe against kill -9.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from minigpt4_serve.errors import InvalidRequest

__all__ = ["PendingAnswer", "Storage"]

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
class PendingAnswer:
    """An answer that had begun: ``place`` is what the adapter needs to find it again, sealed."""

    id: int
    user: str
    place: bytes


class Storage:
    """The database of both bots."""

    def __init__(self, file: Path) -> None:
        """Open or make the database.

        Raises:
            InvalidRequest: the file can't be opened or isn't a database.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is its own transaction. The waiting time covers the other bot's.
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
        """Don't count a question that couldn't be answered."""
        self._connection.execute("DELETE FROM asked WHERE id = ?", (number,))

    def times_of_user(self, user: str, since: float) -> list[float]:
        """When the user asked since then, oldest first."""
        return self._times("SELECT at FROM asked WHERE user = ? AND at > ? ORDER BY at", user, since)

    def times_of_chat(self, chat: str, since: float) -> list[float]:
        """When anybody asked in the chat since then, oldest first."""
        return self._times("SELECT at FROM asked WHERE chat = ? AND at > ? ORDER BY at", chat, since)

    def _times(self, query: str, who: str, since: float) -> list[float]:
        return [float(at) for (at,) in self._connection.execute(query, (who, since))]

    def begin_answer(self, *, platform: str, user: str, place: bytes) -> int:
        """Note that an answer begins at ``place``; returns its number."""
        row = self._connection.execute(
            "INSERT INTO pending (platform, user, place) VALUES (?, ?, ?)", (platform, user, place)
        )
        assert row.lastrowid is not None
        return row.lastrowid

    def move_answer(self, number: int, place: bytes) -> None:
        """The answer has its message now: the place is known better."""
        self._connection.execute("UPDATE pending SET place = ? WHERE id = ?", (place, number))

    def finish_answer(self, number: int) -> None:
        """The answer is complete, or its end was explained."""
        self._connection.execute("DELETE FROM pending WHERE id = ?", (number,))

    def unfinished_answers(self, platform: str) -> list[PendingAnswer]:
        """What an earlier life of this platform's bot left behind. Call before the first question."""
        rows = self._connection.execute("SELECT id, user, place FROM pending WHERE platform = ?", (platform,))
        return [PendingAnswer(int(number), str(user), bytes(place)) for number, user, place in rows]

    def fact(self, name: str) -> str | None:
        """A remembered fact about the platform, such as the digest of the commands synchronised last."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember_fact(self, name: str, value: str) -> None:
        """Remember a fact, replacing the older one."""
        self._connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))
