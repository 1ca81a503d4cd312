"""Remember which webhook deliveries were handled: the `DeliveryLog` protocol, and one in SQLite."""

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

from agentphone._checks import check_seconds
from agentphone.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")


class DeliveryLog(Protocol):
    """Remembers which deliveries were handled. A class with these two methods is one; it need not inherit.

    Ask `seen` first; if it is not, handle the event, and `mark` it only when that succeeded: then a handler that fails
    gets the retry. What this cannot prevent: that a retry arrives while the handler is still at work on the first. Give
    the handler less time than AgentPhone waits for it, or let what it does bear a repetition.
    """

    def seen(self, delivery_id: str, /) -> bool:
        """Say whether the delivery was marked."""
        ...

    def mark(self, delivery_id: str, /) -> None:
        """Remember the delivery as handled; again does nothing."""
        ...


class SQLiteDeliveryLog:
    """A `DeliveryLog` in an SQLite file, for all threads and processes of one machine.

    It opens the file for each call and holds nothing open, so that it may be made before a fork. A call takes
    milliseconds and blocks: in `async` code make it in a thread (`await asyncio.to_thread(log.seen, id)`).

    Args:
        path: The file, for this log alone; it is made if it is not there. The folder must be.
        keep: How long a delivery is remembered, in seconds: longer than AgentPhone goes on to retry. What is older is
            deleted by later marks.
        clock: Gives now, in unix seconds.

    Raises:
        ConfigurationError: The file cannot be opened, or is no such log, or `keep` is not a positive, finite number.
        TypeError: An argument is of another type.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, keep: float = 7 * 24 * 3600, clock: Callable[[], float] = time.time
    ) -> None:
        import sqlite3

        check_seconds("keep", keep, maximum=sys.float_info.max, error=ConfigurationError)
        if os.fspath(path) == ":memory:":  # of which each call would have one of its own
            raise ConfigurationError("The delivery log is kept in a file, not in ':memory:'.")
        self._path = Path(path).absolute()  # because a daemon changes its folder later
        self._keep = keep
        self._clock = clock
        try:
            self._transact(_create_tables)
        except sqlite3.Error as error:
            raise ConfigurationError(f"The delivery log {str(self._path)!r} cannot be used: {error}.") from error

    def seen(self, delivery_id: str, /) -> bool:
        """Say whether the delivery was marked.

        Raises:
            TypeError: The id is not a string; `event.delivery_id` is None for a delivery without one.
            sqlite3.Error: The file cannot be read.
        """
        _check_id(delivery_id)
        query = "SELECT 1 FROM deliveries WHERE id = ?"
        return self._transact(lambda database: database.execute(query, (delivery_id,)).fetchone()) is not None

    def mark(self, delivery_id: str, /) -> None:
        """Remember the delivery as handled; again does nothing.

        Raises:
            TypeError: The id is not a string; `event.delivery_id` is None for a delivery without one.
            sqlite3.Error: The file cannot be written.
        """
        _check_id(delivery_id)
        now = self._clock()

        def write(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (delivery_id, now))
            database.execute("DELETE FROM deliveries WHERE marked_at < ?", (now - self._keep,))

        self._transact(write)

    def __repr__(self) -> str:
        return f"<SQLiteDeliveryLog {str(self._path)!r}>"

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` and commit; call it again, which must do no harm, while another process has the file locked."""
        import sqlite3

        deadline_at = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                with (
                    _no_fork,
                    closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as database,
                    database,
                ):
                    return work(database)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_at:
                    raise
            # Not by SQLite's own timeout, during which `_no_fork` would be held.
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  # no secret: two processes must not wait in step


def _create_tables(database: sqlite3.Connection) -> None:
    import sqlite3

    database.execute("BEGIN IMMEDIATE")
    [found] = database.execute("PRAGMA application_id").fetchone()
    [tables] = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == _APPLICATION_ID:
        return
    if found or tables:
        raise sqlite3.DatabaseError("it is a database of something else; name a file of its own")
    database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    database.execute("CREATE TABLE deliveries (id TEXT PRIMARY KEY, marked_at REAL NOT NULL) WITHOUT ROWID")
    database.execute("CREATE INDEX deliveries_by_time ON deliveries (marked_at)")


_APPLICATION_ID = 0x41506C67  # "APlg", in the header of the file: marks it as a delivery log.


_BUSY_SECONDS = 30.0


_no_fork = threading.RLock()
"""Held while SQLite is at work, which takes milliseconds. It notes its locks of a file in memory: a child that is
forked in that moment would wait for one that nobody releases."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release)


def _check_id(delivery_id: Any) -> None:
    if not isinstance(delivery_id, str):
        raise TypeError(
            f"A delivery's id is a string, not {type(delivery_id).__name__}; event.delivery_id is None where the"
            " delivery has no X-Webhook-ID."
        )
