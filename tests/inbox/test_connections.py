"""Connections to the database: none is left open, of which Python 3.13 would warn once it is garbage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from agentphone.inbox import _worker
from agentphone.inbox._database import Database, DatabaseError
from agentphone.inbox._engine import create_engine
from agentphone.inbox._worker_lock import name_lock
from tests.inbox.account import Account
from tests.inbox.world import working


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Yield the list of the connections that are opened during the test."""
    connections: list[Any] = []

    def remember(connection: Any, _: object) -> None:
        connections.append(connection)

    event.listen(sa.Pool, "connect", remember)
    yield connections
    event.remove(sa.Pool, "connect", remember)


def open_ones(connections: list[Any]) -> list[Any]:
    def is_open(connection: Any) -> bool:
        try:
            connection.execute("SELECT 1")
        except sqlite3.ProgrammingError:  # Cannot operate on a closed database
            return False
        return True

    assert connections
    return [connection for connection in connections if is_open(connection)]


def test_file_that_is_not_a_database(tmp_path: Path, opened: list[Any]) -> None:
    (tmp_path / "inbox.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseError):
        Database(f"sqlite:///{tmp_path / 'inbox.db'}", "inbox").get("start")
    assert open_ones(opened) == []


def test_tables_that_cannot_be_created(tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: sa.Engine) -> None:
        raise SQLAlchemyError("the disk is full")

    monkeypatch.setattr("agentphone.inbox._database._create_table", fail)
    with pytest.raises(SQLAlchemyError, match="the disk is full"):
        Database(f"sqlite:///{tmp_path / 'inbox.db'}", "inbox").get("start")
    assert open_ones(opened) == []


def test_one_that_is_in_use_while_the_database_is_closed(tmp_path: Path, opened: list[Any]) -> None:
    database = Database(f"sqlite:///{tmp_path / 'inbox.db'}", "inbox")
    with database.connect() as connection:
        database.close()
        connection.exec_driver_sql("SELECT 1")
        assert len(open_ones(opened)) == 1
    assert open_ones(opened) == []
    assert database.get("start") is None, "a later use opens new ones"
    database.close()
    assert open_ones(opened) == []


def test_one_that_is_in_use_while_the_worker_stops(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a thread of DBOS, which does not wait for all of its own."""
    engines: list[sa.Engine] = []

    def remembering(url: str) -> sa.Engine:
        engines.append(create_engine(url))
        return engines[0]

    monkeypatch.setattr(_worker, "create_engine", remembering)
    with closing(Account(tmp_path)) as account:
        account.inbox.on_message(lambda text: "ok")
        with working(account.inbox):
            in_use = engines[0].connect()
        in_use.close()
    assert open_ones(opened) == []


def test_one_that_cannot_lock_a_name(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(postgresql.replace("/postgres?", "/inbox_connections?"), "inbox")
    lock: Any = name_lock(database, "inbox", "one")
    lock._key = 2**64  # which PostgreSQL refuses
    with pytest.raises(DatabaseError) as raised:
        lock.acquire()
    pool = database._open().engine.pool
    assert raised.value.__traceback__ is not None, "which keeps alive what it has seen"
    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    database.close()
