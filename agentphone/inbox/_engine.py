"""SQLAlchemy's engines for the inbox's database: how connections to SQLite and PostgreSQL are configured."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

BUSY_SECONDS = 30


def create_engine(url: str) -> sa.Engine:
    """Return the engine for a database's URL, as `resolve_database` returns it."""
    if not url.startswith("sqlite:"):
        psycopg = sa.make_url(url).set(drivername="postgresql+psycopg")
        return sa.create_engine(psycopg, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    engine = sa.create_engine(url)
    event.listen(engine, "connect", _add_unixepoch)

    def configure(connection: Any, _: object) -> None:
        # As DBOS does it: a transaction that reads first and then writes would fail instead of waiting.
        connection.isolation_level = "IMMEDIATE"
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA foreign_keys = ON")

    event.listen(engine, "connect", configure)
    try:
        with suppress(OperationalError), engine.connect() as connection:
            # One sync of the disk for each transaction instead of three, and readers do not wait. The file keeps it. It
            # fails while another process uses the file, which has set it then.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    except BaseException:  # such as: the file is not a database
        close_engine(engine)
        raise
    return engine


def close_engine(engine: sa.Engine) -> None:
    """Close the connections of an engine: those that are idle now, those in use when they are returned.

    `dispose` alone leaves the latter open until they are garbage, of which Python 3.13 and psycopg warn.
    """
    event.listen(engine, "checkin", _close_connection)
    engine.dispose()


def _close_connection(_: object, record: Any) -> None:
    record.invalidate()


def _add_unixepoch(connection: Any, _: object) -> None:
    """Add what DBOS calls on Python 3.12 and later: `unixepoch('subsec')`.

    SQLite has it since 3.42. An earlier one, such as the 3.40 of Debian 12, returns NULL, and nothing could be stored.
    """
    if isinstance(connection, sqlite3.Connection) and sqlite3.sqlite_version_info < (3, 42):
        connection.create_function("unixepoch", 1, lambda _: time.time())


@contextmanager
def configuring_all_connections() -> Generator[None]:
    """Configure the connections of all engines meanwhile: DBOS migrates over an engine of its own."""
    event.listen(sa.Engine, "connect", _add_unixepoch)
    try:
        yield
    finally:
        event.remove(sa.Engine, "connect", _add_unixepoch)
