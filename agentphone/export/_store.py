"""What an export has taken so far, in SQLite: rows by key, so that nothing is there twice, and what is still missing.

The only file that knows SQL. Each page is one transaction, and so is each step from one phase to the next: a process
that is killed leaves what it has committed, in a state to go on from. The database is locked for as long as it is open,
and by the system, so that the lock ends with the process.

Keys are bytes, which SQLite compares as Python compares the text they stand for. Instants are microseconds since 1970.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import define, frozen

from agentphone.errors import ConfigurationError

META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS conversations (
        id BLOB PRIMARY KEY,
        row BLOB NOT NULL,
        announced INTEGER,
        taken INTEGER NOT NULL DEFAULT 0,
        is_complete INTEGER NOT NULL) WITHOUT ROWID""",
    # The key is the order of the file backwards: writing the file is one walk along it, and what comes in, newest
    # first, fills page after page. (Forwards, the database was 2.4 times as large as the rows, and is 1.4 times.) A
    # message without a row was in an earlier export, and is not to be taken again.
    """CREATE TABLE IF NOT EXISTS messages (
        conversation BLOB NOT NULL,
        received_at INTEGER NOT NULL,
        id BLOB NOT NULL,
        row BLOB,
        PRIMARY KEY (conversation DESC, received_at DESC, id DESC)) WITHOUT ROWID""",
)
LIST = "INSERT OR IGNORE INTO conversations (id, row, announced, is_complete) VALUES (?, ?, ?, ?)"
NEXT = "SELECT id FROM conversations WHERE id > ? AND NOT is_complete ORDER BY id LIMIT 1"
OLDEST = """SELECT received_at, id FROM messages WHERE conversation = ? AND row IS NOT NULL
    ORDER BY received_at, id LIMIT 1"""
ADD = "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?)"
TAKEN = "UPDATE conversations SET taken = taken + ?, is_complete = ? WHERE id = ?"
COUNTS = """SELECT count(*), total(is_complete), total(taken), iif(count(announced) = count(*), total(announced), NULL)
    FROM conversations"""
ROWS = {
    "conversations": "SELECT row FROM conversations ORDER BY id",
    "messages": "SELECT row FROM messages WHERE row IS NOT NULL ORDER BY conversation, received_at, id",
}

# What is left for the next export, in a database of its own.
KNOWN_SCHEMA = "CREATE TABLE known (conversation BLOB NOT NULL, received_at INTEGER NOT NULL, id BLOB NOT NULL)"
LATER = "SELECT conversation, received_at, id FROM messages WHERE received_at > ?"
KNOW = "INSERT INTO known VALUES (?, ?, ?)"
KNOWN = "SELECT conversation, received_at, id FROM known"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LISTING, READING, WRITTEN = "listing", "reading", "written"
DATABASE = "export.db"
GRACE_SECONDS = 1.0
"""How long to wait for the lock: a process that has just been killed may still hold it."""


@frozen
class Listed:
    """A conversation as it was listed."""

    id: str
    row: bytes
    announced: int | None
    """How many messages the API says it holds."""
    is_complete: bool
    """Whether none of its messages is wanted."""


@frozen
class Key:
    """What tells a message, and where it stands among the others."""

    conversation_id: str
    received_at: datetime
    id: str


@define
class Counts:
    """How much there is, and how much of it was taken."""

    conversations: int
    complete: int
    messages: int
    announced: int | None


class Store:
    """The database of one export, from its beginning to its end through any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE
        self._connection: sqlite3.Connection | None = None
        self._last_given = b""

    def open(self, arguments: Mapping[str, str]) -> dict[str, str]:
        """Open the database and lock it. One that is new, or in which not even all is listed, begins from nothing.

        Args:
            arguments: What an export that begins now is begun with, to be noted.

        Returns:
            All that is noted: `phase`, and what the export in it was begun with.

        Raises:
            ConfigurationError: Another process holds the lock.
            OSError: The disk is full, or does not let itself be written.
        """
        with self._map_exceptions():
            connection = sqlite3.connect(
                self.path, timeout=GRACE_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            # What was committed survives a kill, and the loss of power leaves a database that is whole, if not new.
            connection.execute("PRAGMA synchronous = NORMAL")
        with self._transaction() as connection:
            connection.execute(META)
            if self._get(connection, "phase", LISTING) == LISTING:
                for statement in SCHEMA:
                    connection.execute(statement)
                connection.execute("DELETE FROM conversations")
                connection.execute("DELETE FROM messages")
                self._put(connection, {"phase": LISTING, **arguments})
            return dict(connection.execute("SELECT name, value FROM meta"))

    def close(self) -> None:
        """Close the database and let go of its lock. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def remove(self) -> None:
        """Remove the database, which nobody needs any more, with its log.

        SQLite itself leaves the log, which holds all rows, where the disk has no room to merge it.
        """
        self.close()
        for suffix in ("", "-wal", "-shm"):  # In this order: without its log the database would be an older one.
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def add_listed(self, conversations: Iterable[Listed]) -> None:
        """Add conversations."""
        rows = [(_key(item.id), item.row, item.announced, item.is_complete) for item in conversations]
        with self._transaction() as connection:
            connection.executemany(LIST, rows)

    def finish_listing(self, notes: Mapping[str, str]) -> None:
        """Note that every conversation is listed, and what else is to be known from now on."""
        with self._transaction() as connection:
            self._put(connection, {"phase": READING, **notes})

    def next_conversation(self) -> tuple[str, Key | None] | None:
        """Give the next conversation that is not complete, each once; and the oldest of its messages that is here."""
        with self._map_exceptions():
            found = self._open_connection().execute(NEXT, (self._last_given,)).fetchone()
            if found is None:
                return None
            [self._last_given] = found
            conversation_id = _text(self._last_given)
            oldest = self._open_connection().execute(OLDEST, found).fetchone()
        return conversation_id, None if oldest is None else Key(conversation_id, _instant(oldest[0]), _text(oldest[1]))

    def add_messages(
        self, conversation_id: str, messages: Iterable[tuple[datetime, str, bytes]], *, is_complete: bool
    ) -> int:
        """Add a page of messages (instant, id, row), and say how many were not here before."""
        conversation = _key(conversation_id)
        rows = [(conversation, _micros(instant), _key(id_), row) for instant, id_, row in messages]
        with self._transaction() as connection:
            new = connection.executemany(ADD, rows).rowcount if rows else 0
            connection.execute(TAKEN, (new, is_complete, conversation))
        return new

    def leave_out(self, conversation_id: str) -> int:
        """Forget a conversation that is not there any more, and say how many of its messages were here."""
        conversation = _key(conversation_id)
        with self._transaction() as connection:
            [taken] = connection.execute("SELECT taken FROM conversations WHERE id = ?", (conversation,)).fetchone()
            connection.execute("DELETE FROM messages WHERE conversation = ?", (conversation,))
            connection.execute("DELETE FROM conversations WHERE id = ?", (conversation,))
            skipped = int(self._get(connection, "left_out", "0")) + 1
            self._put(connection, {"left_out": str(skipped)})
        return int(taken)

    def counts(self) -> Counts:
        """Count."""
        with self._map_exceptions():
            count, complete, taken, announced = self._open_connection().execute(COUNTS).fetchone()
        return Counts(count, int(complete), int(taken), announced)

    def rows(self, table: str, size: int) -> Iterator[Sequence[bytes]]:
        """Give the rows of a file in its order, so many at a time."""
        with self._map_exceptions():
            found = self._open_connection().execute(ROWS[table])
            while chunk := found.fetchmany(size):
                yield [row for (row,) in chunk]

    def save_last(self, path: Path, meta: Mapping[str, str], settled: datetime) -> None:
        """Write what the next export needs to take only what is new.

        Args:
            path: The file; whatever is there is overwritten.
            meta: What to note in it.
            settled: What was received until then need not be named one by one. The messages of the time since are, with
                those that an earlier export has taken.
        """
        path.unlink(missing_ok=True)
        with self._map_exceptions(path), _database(path) as last:
            last.execute(META)
            last.execute(KNOWN_SCHEMA)
            last.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            last.executemany(KNOW, self._open_connection().execute(LATER, (_micros(settled),)))

    def load_last(self, path: Path) -> tuple[dict[str, str], datetime] | None:
        """Take over which messages the last export has taken.

        Returns:
            What it has noted, and the instant to go on from; None if there is no file.

        Raises:
            ConfigurationError: The file is damaged.
        """
        if not path.exists():
            return None
        with _last(path) as last:
            meta = dict(last.execute("SELECT name, value FROM meta"))
            if not {"version", "key", "settled"} <= meta.keys() or not all(
                isinstance(one, str) for one in meta.values()
            ):
                raise ValueError("it does not say what it belongs to")
            settled = datetime.fromisoformat(meta["settled"])
            _micros(settled)
        with closing(_known(path)) as known, self._transaction() as connection:
            connection.executemany(ADD, known)
        return meta, settled

    def get(self, name: str, default: str = "") -> str:
        """Give what was noted under a name."""
        with self._map_exceptions():
            return self._get(self._open_connection(), name, default)

    def finish_writing(self) -> None:
        """Note that the files are whole. It is on the disk when this returns: they are moved away next."""
        self._open_connection().execute("PRAGMA synchronous = FULL")
        with self._transaction() as connection:
            self._put(connection, {"phase": WRITTEN})

    def _get(self, connection: sqlite3.Connection, name: str, default: str) -> str:
        found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if found is None else str(found[0])

    def _put(self, connection: sqlite3.Connection, values: Mapping[str, str]) -> None:
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _open_connection(self) -> sqlite3.Connection:
        assert self._connection is not None, "the store is closed"  # noqa: S101  # a mistake of ours
        return self._connection

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._map_exceptions(), self._open_connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _map_exceptions(self, path: Path | None = None) -> Generator[None]:
        """Say in the words of this package what SQLite could not do, with our own database or with another one."""
        path = path or self.path
        try:
            yield
        except sqlite3.Error as error:
            error_code = getattr(error, "sqlite_errorcode", 0)
            code = error_code & 0xFF
            # The other is how SQLite says that the file is gone: an export ended while this one waited for it.
            if code == sqlite3.SQLITE_BUSY or error_code == sqlite3.SQLITE_IOERR_FSTAT:
                raise ConfigurationError(
                    f"Another export is at work in {str(self.path.parent.parent)!r}. Wait for its end, or choose"
                    " another directory."
                ) from None
            # The last one is how SQLite says that a table is missing.
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                raise ConfigurationError(
                    f"{str(path)!r} is damaged ({error}), and the export cannot go on. Delete"
                    f" {str(self.path.parent)!r} to begin again."
                ) from error
            number = errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(number, str(error), str(path)) from error


@contextmanager
def _database(path: Path) -> Generator[sqlite3.Connection]:
    """Open another database for one transaction."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with connection:
            connection.execute("BEGIN")
            yield connection
    finally:
        connection.close()


@contextmanager
def _last(path: Path) -> Generator[sqlite3.Connection]:
    """Open what the last export has left; whatever fails in the block is put down to that file."""
    try:
        with _database(path) as last:
            yield last
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{str(path)!r} cannot be read ({error}). If it is damaged, delete it and export without since."
        ) from error


def _known(path: Path) -> Generator[tuple[bytes, int, bytes, None]]:
    """Give the messages that the last export names, as rows."""
    with _last(path) as last:
        for row in last.execute(KNOWN):
            if list(map(type, row)) != [bytes, int, bytes]:
                raise ValueError("a message in it has no id or no instant")
            yield (*row, None)


def _key(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


def _micros(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def _instant(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)
