"""The state of an export in SQLite: the rows read so far, each once, and what is still to be read.

The only module of the export that knows SQL. Each page is one transaction, and so is each change of phase: a process
that is killed leaves a state to resume from. The database is locked while it is open. The operating system holds the
lock, so it ends with the process.

Keys are bytes, which SQLite orders as Python orders their text. Timestamps are microseconds since 1970.
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
        stored INTEGER NOT NULL DEFAULT 0,
        is_complete INTEGER NOT NULL) WITHOUT ROWID""",
    # The key is the file's order reversed: messages arrive newest first and fill page after page. The database is 1.4
    # times as large as its rows; with the key in the file's order it was 2.4 times. A message without a row was in an
    # earlier export and is not exported again.
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
COUNT_STORED = "UPDATE conversations SET stored = stored + ?, is_complete = ? WHERE id = ?"
# `total` is a float, and 0 where there are no rows; `sum` would be NULL.
COUNTS = """SELECT count(*), CAST(total(is_complete) AS INTEGER), CAST(total(stored) AS INTEGER),
    iif(count(announced) = count(*), CAST(total(announced) AS INTEGER), NULL) FROM conversations"""
ROWS = {
    "conversations": "SELECT row FROM conversations ORDER BY id",
    "messages": "SELECT row FROM messages WHERE row IS NOT NULL ORDER BY conversation, received_at, id",
}

# What the next export needs, in a database of its own.
KNOWN_SCHEMA = "CREATE TABLE known (conversation BLOB NOT NULL, received_at INTEGER NOT NULL, id BLOB NOT NULL)"
LATER = "SELECT conversation, received_at, id FROM messages WHERE received_at > ?"
KNOW = "INSERT INTO known VALUES (?, ?, ?)"
KNOWN = "SELECT conversation, received_at, id FROM known"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LISTING, READING, WRITTEN = "listing", "reading", "written"
DATABASE = "export.db"
GRACE_SECONDS = 1.0
"""How long to wait for the lock, which a process that was just killed may still hold."""


@frozen
class Listed:
    """A conversation as it was listed."""

    id: str
    row: bytes
    announced: int | None
    """Its `messageCount`."""
    is_complete: bool
    """True if none of its messages is to be read."""


@frozen
class MessageKey:
    """The key of a message, which is also its place in the order."""

    conversation_id: str
    received_at: datetime
    id: str


@frozen(kw_only=True)
class LastExport:
    """What an export leaves for the next one in its directory."""

    fingerprint: Mapping[str, str]
    watermark: datetime
    """The timestamp to continue from."""
    messages: int
    """How many messages are in its file."""
    digest: str
    """The digest of that file."""
    is_kept: bool
    """Whether `since="last"` has made or continued it."""


@define
class Counts:
    """How much there is, and how much of it was read."""

    conversations: int
    complete: int
    messages: int
    announced: int | None


class ExportDatabase:
    """The database of one export, through any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE
        self._connection: sqlite3.Connection | None = None
        self._last_returned = b""

    def open(self, arguments: Mapping[str, str]) -> dict[str, str]:
        """Open the database and lock it. If the listing in it is not complete, start over.

        Args:
            arguments: The fingerprint to store if an export begins now.

        Returns:
            The stored values: `phase`, and the fingerprint of the export.

        Raises:
            ConfigurationError: Another process holds the lock.
            OSError: The disk is full or cannot be written.
        """
        with self._map_exceptions():
            connection = sqlite3.connect(
                self.path, timeout=GRACE_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            # Commits survive a kill. After a power failure the database is consistent; the last commits may be lost.
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
        """Close the database and release its lock. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def remove(self) -> None:
        """Remove the database and its write-ahead log.

        SQLite leaves the log, which holds every row, when the disk has no room to merge it.
        """
        self.close()
        for suffix in ("", "-wal", "-shm"):  # In this order: without its log the database would be an older state.
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def add_listed(self, conversations: Iterable[Listed]) -> None:
        """Add conversations."""
        rows = [(_encode_key(item.id), item.row, item.announced, item.is_complete) for item in conversations]
        with self._transaction() as connection:
            connection.executemany(LIST, rows)

    def finish_listing(self, notes: Mapping[str, str]) -> None:
        """Record that every conversation is listed, with further values for later."""
        with self._transaction() as connection:
            self._put(connection, {"phase": READING, **notes})

    def next_conversation(self) -> tuple[str, MessageKey | None] | None:
        """Return the next incomplete conversation, each once, and the key of its oldest stored message."""
        with self._map_exceptions():
            found = self._open_connection().execute(NEXT, (self._last_returned,)).fetchone()
            if found is None:
                return None
            [self._last_returned] = found
            conversation_id = _text(self._last_returned)
            oldest = self._open_connection().execute(OLDEST, found).fetchone()
        return conversation_id, None if oldest is None else MessageKey(
            conversation_id, _from_micros(oldest[0]), _text(oldest[1])
        )

    def add_messages(
        self, conversation_id: str, messages: Iterable[tuple[datetime, str, bytes]], *, is_complete: bool
    ) -> int:
        """Add a page of messages (timestamp, id, row), and return how many were new."""
        conversation = _encode_key(conversation_id)
        rows = [(conversation, _to_micros(timestamp), _encode_key(id_), row) for timestamp, id_, row in messages]
        with self._transaction() as connection:
            new = connection.executemany(ADD, rows).rowcount if rows else 0
            connection.execute(COUNT_STORED, (new, is_complete, conversation))
        return new

    def skip(self, conversation_id: str) -> int:
        """Remove a conversation that was deleted, and return how many of its messages were stored."""
        conversation = _encode_key(conversation_id)
        with self._transaction() as connection:
            [stored] = connection.execute("SELECT stored FROM conversations WHERE id = ?", (conversation,)).fetchone()
            connection.execute("DELETE FROM messages WHERE conversation = ?", (conversation,))
            connection.execute("DELETE FROM conversations WHERE id = ?", (conversation,))
            skipped = int(self._get(connection, "skipped", "0")) + 1
            self._put(connection, {"skipped": str(skipped)})
        return int(stored)

    def counts(self) -> Counts:
        """Return the counts."""
        with self._map_exceptions():
            return Counts(*self._open_connection().execute(COUNTS).fetchone())

    def rows(self, table: str, size: int) -> Iterator[Sequence[bytes]]:
        """Yield the rows of a file in its order, `size` at a time."""
        with self._map_exceptions():
            found = self._open_connection().execute(ROWS[table])
            while chunk := found.fetchmany(size):
                yield [row for (row,) in chunk]

    def save_last(self, path: Path, meta: Mapping[str, str], watermark: datetime) -> None:
        """Write the state that the next incremental export needs.

        Args:
            path: The file; an existing one is overwritten.
            meta: Values to store in it.
            watermark: The keys of messages received later than this are stored, those of earlier exports included.
                Earlier messages need no key.
        """
        path.unlink(missing_ok=True)
        with self._map_exceptions(path), _database(path) as last:
            last.execute(META)
            last.execute(KNOWN_SCHEMA)
            last.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            last.executemany(KNOW, self._open_connection().execute(LATER, (_to_micros(watermark),)))

    def read_last(self, path: Path) -> LastExport | None:
        """Read the state of the last export; None if there is no file.

        Raises:
            ConfigurationError: The file is damaged.
        """
        if not path.exists():
            return None
        with _last(path) as last:
            meta = dict(last.execute("SELECT name, value FROM meta"))
            if not {"version", "key", "watermark"} <= meta.keys() or not all(
                isinstance(one, str) for one in meta.values()
            ):
                raise ValueError("its fingerprint is missing")
            watermark = datetime.fromisoformat(meta["watermark"])
            watermark.astimezone(UTC)  # raises OverflowError outside the years 1 to 9999
            _to_micros(watermark)
            digest = meta.get("digest", "0:")  # an earlier version has none, and the caller refuses it
            int(digest.partition(":")[0])
            return LastExport(
                fingerprint=meta,
                watermark=watermark,
                messages=int(meta.get("messages", "0")),
                digest=digest,
                is_kept=bool(meta.get("is_kept")),
            )

    def add_known(self, path: Path) -> None:
        """Add the keys of the messages that the last export wrote.

        Raises:
            ConfigurationError: The file is damaged.
        """
        with closing(_known(path)) as known, self._transaction() as connection:
            connection.executemany(ADD, known)

    def get(self, name: str, default: str = "") -> str:
        """Return the stored value of a name."""
        with self._map_exceptions():
            return self._get(self._open_connection(), name, default)

    def finish_writing(self) -> None:
        """Record that the files are complete. It is on the disk when this returns, before the files are moved."""
        self._open_connection().execute("PRAGMA synchronous = FULL")
        with self._transaction() as connection:
            self._put(connection, {"phase": WRITTEN})

    def _get(self, connection: sqlite3.Connection, name: str, default: str) -> str:
        found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if found is None else str(found[0])

    def _put(self, connection: sqlite3.Connection, values: Mapping[str, str]) -> None:
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _open_connection(self) -> sqlite3.Connection:
        assert self._connection is not None, "the store is closed"  # noqa: S101  # would be a bug in the exporter
        return self._connection

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._map_exceptions(), self._open_connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _map_exceptions(self, path: Path | None = None) -> Generator[None]:
        """Raise this package's errors for those of SQLite, about this database or the one at `path`."""
        path = path or self.path
        try:
            yield
        except sqlite3.Error as error:
            error_code = getattr(error, "sqlite_errorcode", 0)
            code = error_code & 0xFF
            # SQLITE_IOERR_FSTAT: the file was removed, because another export ended while this one waited.
            if code == sqlite3.SQLITE_BUSY or error_code == sqlite3.SQLITE_IOERR_FSTAT:
                raise ConfigurationError(
                    f"Another export is running in {str(self.path.parent.parent)!r}. Wait until it ends, or use another"
                    " directory."
                ) from None
            # SQLITE_ERROR: a table is missing.
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                raise ConfigurationError(
                    f"{str(path)!r} is damaged ({error}), so the export cannot resume. Delete"
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
    """Open the state of the last export. Whatever fails in the block is reported as a fault of that file."""
    try:
        with _database(path) as last:
            yield last
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(
            f"{str(path)!r} cannot be read ({error}). If it is damaged, delete it and export without since."
        ) from error


def _known(path: Path) -> Generator[tuple[bytes, int, bytes, None]]:
    """Yield the messages that the last export names, as rows."""
    with _last(path) as last:
        for row in last.execute(KNOWN):
            if list(map(type, row)) != [bytes, int, bytes]:
                raise ValueError("a message in it has no id or no timestamp")
            yield (*row, None)


def _encode_key(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


def _to_micros(timestamp: datetime) -> int:
    return (timestamp - EPOCH) // timedelta(microseconds=1)


def _from_micros(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)
