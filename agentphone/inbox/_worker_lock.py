"""The lock on a worker's name: two live workers of one name would each take over what the other is doing.

On SQLite it is a lock on a file beside the database, on PostgreSQL an advisory lock of a connection. Both end with the
process, however it ends.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Protocol
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from agentphone.errors import ConfigurationError
from agentphone.inbox._database import Database

PATIENCE_SECONDS = 1.0
"""How long a starting worker tries: another one may hold its name for a moment, to take over what it has left."""
INTERVAL = 0.1


class NameTakenError(ConfigurationError):
    """A worker of this name is running already."""


class NameLock(Protocol):
    """The lock on a name: `acquire` takes it, or keeps it, and returns False if another process has it."""

    def acquire(self) -> bool: ...
    def release(self) -> None: ...


def name_lock(database: Database, inbox: str, name: str) -> NameLock:
    """Return the lock on a worker's name, not yet taken."""
    return _FileLock(database, inbox, name) if database.is_sqlite else _PostgreSQLLock(database, inbox, name)


@contextmanager
def hold_name(database: Database, inbox: str, name: str, *, patience: float = PATIENCE_SECONDS) -> Generator[NameLock]:
    """Hold the name of a worker while the block runs.

    Args:
        database: The database.
        inbox: The name of the inbox.
        name: The name of the worker.
        patience: Seconds to wait for the lock.

    Raises:
        NameTakenError: Another process holds it.
    """
    lock = name_lock(database, inbox, name)
    ends_at = time.monotonic() + patience
    while not lock.acquire():
        if time.monotonic() >= ends_at:
            raise NameTakenError(
                f"name={name!r}: a worker of this name is running already. Each needs a name of its own, which it keeps"
                " when it is restarted (--name)."
            )
        time.sleep(INTERVAL)
    try:
        yield lock
    finally:
        lock.release()


class _FileLock:
    def __init__(self, database: Database, inbox: str, name: str) -> None:
        assert database.path is not None  # noqa: S101  # for the type checkers
        self._path = database.path.with_name(f"{database.path.name}.{quote(f'{inbox}.{name}', safe='')}.lock")
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        if self._file is None:
            file = self._path.open("a", encoding="utf-8")
            if not _lock_file(file.fileno()):
                file.close()
                return False
            self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _PostgreSQLLock:
    def __init__(self, database: Database, inbox: str, name: str) -> None:
        self._database = database
        self._key = int.from_bytes(hashlib.sha256(f"worker\0{inbox}\0{name}".encode()).digest()[:8], signed=True)
        self._connection: sa.Connection | None = None

    def acquire(self) -> bool:
        if self._connection is not None:
            try:
                self._connection.execute(sa.select(1))
            except SQLAlchemyError:  # the connection was lost, and the lock with it
                self.release()
            else:
                return True
        with ExitStack() as stack:
            connection = stack.enter_context(self._database.connect()).execution_options(isolation_level="AUTOCOMMIT")
            if connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._key))).scalar_one():
                self._connection = connection
                stack.pop_all()
        return self._connection is not None

    def release(self) -> None:
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.execute(sa.select(sa.func.pg_advisory_unlock(self._key)))
            with suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None


def _lock_file(descriptor: int) -> bool:
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # of Windows
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
