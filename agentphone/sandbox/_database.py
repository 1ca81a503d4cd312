"""The sandbox's SQLite database: its one connection, transactions, locking between processes, and forks.

It knows no tables. A file carries an application id and the version of its tables, so that another program's database,
or one with other tables, is rejected before anything is written to it.
"""

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from agentphone._loop_thread import hold_lock_at_fork

APPLICATION_ID = 0x41507362  # "APsb", in the header of the file
BUSY_SECONDS = 10.0
"""How long another process may hold the file before a transaction fails."""


class Database:
    """One SQLite database, for any number of threads and, in a file, of processes.

    Every transaction is committed before it returns.

    Args:
        path: The file, created if it is missing; None keeps the data in memory.
        schema: The statements that create the tables.
        version: The version of the tables, at least 1.

    Attributes:
        is_in_memory: Whether the data is gone when the database is closed.
        on_create: Called inside the transaction that creates the tables. A database in memory is created again in a
            forked child.

    Raises:
        ValueError: The path is `":memory:"`.
        sqlite3.Error: The file cannot be opened, or is another program's database.
    """

    def __init__(self, path: str | os.PathLike[str] | None, schema: Sequence[str], version: int) -> None:
        if path is not None and str(os.fspath(path)).startswith((":memory:", "file:")):  # SQLite's other names
            raise ValueError(f"path must be a file, got {os.fspath(path)!r}; None keeps the data in memory")
        self.is_in_memory: bool = path is None
        self.on_create: Callable[[sqlite3.Connection], None] = lambda _: None
        # Absolute, because a fork reopens the file, and the working directory may have changed by then.
        self._path = None if path is None else Path(path).absolute()
        self._schema = schema
        self._version = version
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        hold_lock_at_fork(self)
        with self.transaction("BEGIN"):
            pass  # A file that cannot be opened fails here, and not in the first call.

    @contextmanager
    def transaction(self, begin: str) -> Generator[sqlite3.Connection]:
        """Yield the connection for one transaction: committed at the end, rolled back by an exception.

        Args:
            begin: `BEGIN` to read, `BEGIN IMMEDIATE` to write.

        Raises:
            RuntimeError: The database is closed.
            sqlite3.OperationalError: Another process has held the file for `BUSY_SECONDS`.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            with self._lock:
                current = self._open()
                try:
                    current.execute("PRAGMA busy_timeout = 0")
                    current.execute(begin)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                else:
                    current.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
                    with current as connection:
                        yield connection
                    return
            # Another process is writing. Wait without the lock, because a fork waits for the lock.
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  # jitter: two processes must not retry in step

    def version(self) -> tuple[int, int]:
        """Return a value that differs after every commit that changed rows, by this process or another.

        Raises:
            RuntimeError: The database is closed.
        """
        with self._lock:
            connection = self._open()
            return connection.total_changes, connection.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Close the database; data in memory is lost. May be called twice."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    def _open(self) -> sqlite3.Connection:
        if self._is_closed:
            raise RuntimeError("the sandbox is closed")
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path or ":memory:",
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.row_factory = sqlite3.Row
        try:
            is_new = _check_application_id(connection, self._version)
            _enable_wal(connection)
            # Commits survive a kill of the process. FULL would add an fsync per commit, which only matters if the
            # machine loses power.
            connection.execute("PRAGMA synchronous = NORMAL")
            if is_new:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {self._version}")
                    for statement in self._schema:
                        connection.execute(statement)
                    self.on_create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Forks. SQLite keeps a process's file locks in its memory. A child that inherits an open file believes that it
    # holds locks that it does not, and writes to a log that its parent may delete. So no fork happens inside a
    # transaction, and a file is closed before the fork; parent and child reopen it when they need it. A database in
    # memory cannot be closed without losing it: the child creates a new one and never touches the inherited connection.

    def before_fork(self) -> None:
        """Wait for the transaction in progress, then close the file."""
        self._lock.acquire()
        if not self.is_in_memory:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Allow transactions again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Continue with a lock of the child's own and, in memory, a new database."""
        if self._connection is not None:
            _inherited.append(self._connection)
            self._connection = None
        self._lock = threading.RLock()


_inherited: list[sqlite3.Connection] = []
"""Connections of a parent process, kept so that they are never closed."""


class _Connection(sqlite3.Connection):
    """A connection that closes when it is garbage-collected.

    Python 3.13 warns of connections that were not closed. Closing them at exit is no alternative: it crashes the
    interpreter while the webhook thread uses one. A connection in use is never collected.
    """

    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # Opening it failed.
            self.close()


def _check_application_id(connection: sqlite3.Connection, version: int) -> bool:
    """Return whether the database is new.

    Raises:
        sqlite3.DatabaseError: It is another program's, or has tables of another version.
    """
    with connection:
        connection.execute("BEGIN")  # One snapshot: another process may be creating the tables right now.
        found: int = connection.execute("PRAGMA application_id").fetchone()[0]
        found_version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if found != APPLICATION_ID and (found or tables):
        raise sqlite3.DatabaseError("the file is another program's database, not a sandbox; name another file")
    if found == APPLICATION_ID and found_version != version:
        raise sqlite3.DatabaseError("the file is of another version of the sandbox; name another file, or delete it")
    return found != APPLICATION_ID


def _enable_wal(connection: sqlite3.Connection) -> None:
    # When two processes open a new file together, one of them gets SQLITE_BUSY at once, whatever its busy timeout.
    for _ in range(200):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)
        else:
            return
    raise sqlite3.OperationalError("database is locked: another process has been opening it for 10 seconds")
