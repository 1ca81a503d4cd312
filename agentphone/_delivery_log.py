"""Logs of handled webhook deliveries: the `DeliveryLog` protocol, and an implementation in SQLite."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agentphone._checks import check_clock, check_seconds
from agentphone._loop_thread import hold_lock_at_fork
from agentphone.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")


class DeliveryLog(Protocol):
    """A log of handled deliveries. Any class with these two methods is one; it need not inherit.

    Check `seen` first. If it returns False, handle the event, and call `mark` only after the handler succeeded, so that
    a failed handler gets the retry. One case remains: a retry can arrive while the handler still works on the first
    attempt. Finish before AgentPhone's timeout, or make the handler idempotent.
    """

    def seen(self, delivery_id: str, /) -> bool:
        """Return whether the delivery was marked."""
        ...

    def mark(self, delivery_id: str, /) -> None:
        """Record the delivery as handled. Idempotent."""
        ...


class SQLiteDeliveryLog:
    """A `DeliveryLog` in an SQLite file, for all threads and processes of one machine.

    Each call opens and closes the file, so a log can be created before a fork. A call blocks for milliseconds: in
    `async` code run it in a thread (`await asyncio.to_thread(log.seen, id)`).

    Args:
        path: The file, for this log alone. It is created if it is missing; its directory must exist.
        retention: How long a delivery is remembered, in seconds; it must exceed the time for which AgentPhone retries.
            `mark` deletes older ones.
        clock: Returns the current time, in Unix seconds.

    Raises:
        ConfigurationError: The file cannot be opened or is not such a log, or `retention` is not a positive, finite
            number.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, retention: float = 7 * 24 * 3600, clock: Callable[[], float] = time.time
    ) -> None:
        import sqlite3

        check_seconds("retention", retention, maximum=sys.float_info.max, error=ConfigurationError)
        check_clock(clock)
        if os.fspath(path) == ":memory:":  # each call would open a database of its own
            raise ConfigurationError("path must be a file, got ':memory:'")
        self._path = Path(path).absolute()  # because a daemon changes its working directory later
        self._retention = retention
        self._clock = clock
        try:
            self._transact(_create_tables)
        except sqlite3.Error as error:
            raise ConfigurationError(f"The delivery log {str(self._path)!r} cannot be used: {error}.") from error

    def seen(self, delivery_id: str, /) -> bool:
        """Return whether the delivery was marked.

        Raises:
            TypeError: The id is not a string; `event.delivery_id` is None for a delivery without one.
            sqlite3.Error: The file cannot be read.
        """
        _check_id(delivery_id)
        query = "SELECT 1 FROM deliveries WHERE id = ?"
        return self._transact(lambda database: database.execute(query, (delivery_id,)).fetchone()) is not None

    def mark(self, delivery_id: str, /) -> None:
        """Record the delivery as handled. Idempotent.

        Raises:
            TypeError: The id is not a string; `event.delivery_id` is None for a delivery without one.
            sqlite3.Error: The file cannot be written.
        """
        _check_id(delivery_id)
        now = self._clock()

        def write(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (delivery_id, now))
            database.execute("DELETE FROM deliveries WHERE marked_at < ?", (now - self._retention,))

        self._transact(write)

    def __repr__(self) -> str:
        return f"<SQLiteDeliveryLog {str(self._path)!r}>"

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` and commit. While another process has locked the file, retry; `work` must be idempotent."""
        import sqlite3

        deadline_at = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with (
                    _sqlite_lock.lock,
                    closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as database,
                    database,
                ):
                    return work(database)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_at:
                    raise
            # Not SQLite's own timeout: the lock would be held meanwhile.
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  # not a secret: two processes must not wait in step


def _create_tables(database: sqlite3.Connection) -> None:
    import sqlite3

    database.execute("BEGIN IMMEDIATE")
    [found] = database.execute("PRAGMA application_id").fetchone()
    [tables] = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == APPLICATION_ID:
        return
    if found or tables:
        raise sqlite3.DatabaseError("it is the database of another program; use a separate file")
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute("CREATE TABLE deliveries (id TEXT PRIMARY KEY, marked_at REAL NOT NULL) WITHOUT ROWID")
    database.execute("CREATE INDEX deliveries_by_time ON deliveries (marked_at)")


APPLICATION_ID = 0x41506C67
"""In the header of the file ("APlg"): marks it as a delivery log."""
BUSY_SECONDS = 30.0
"""How long a call retries while another process has locked the file."""


class _SQLiteLock:
    """The lock that is held while SQLite works, which takes milliseconds, and while the process forks.

    SQLite keeps its locks of a file in memory. A child that is forked at such a moment would wait for one that
    stays locked forever.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        hold_lock_at_fork(self)

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()


_sqlite_lock = _SQLiteLock()


def _check_id(delivery_id: Any) -> None:
    if not isinstance(delivery_id, str):
        raise TypeError(
            f"delivery_id must be a string, got {type(delivery_id).__name__}; event.delivery_id is None for a delivery"
            " without X-Webhook-ID"
        )
