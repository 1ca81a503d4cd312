"""The lock on a worker's name: two live workers of one name would each take over what the other is doing.

On SQLite it is a lock on a file beside the database, on PostgreSQL an advisory lock of a connection. Both end with the
process, however it ends.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from agentphone.errors import ConfigurationError
from agentphone.inbox._database import Database


@contextmanager
def hold_name(database: Database, inbox: str, name: str) -> Generator[None]:
    """Hold the name of a worker while the block runs.

    Raises:
        ConfigurationError: Another process holds it.
    """
    taken = ConfigurationError(
        f"name={name!r}: a worker of this name is running already. Each needs a name of its own, which it keeps when it"
        " is restarted (--name)."
    )
    if database.path is not None:
        path = database.path.with_name(f"{database.path.name}.{quote(f'{inbox}.{name}', safe='')}.lock")
        with path.open("a", encoding="utf-8") as file:
            if not _lock_file(file.fileno()):
                raise taken
            yield
        return
    key = int.from_bytes(hashlib.sha256(f"{inbox}\0{name}".encode()).digest()[:8], signed=True)
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar_one():
            raise taken
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):  # a connection that is gone has no lock
                connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))


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
