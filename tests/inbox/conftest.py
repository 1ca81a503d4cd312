"""Fixtures of the inbox's tests: its databases, among them a real PostgreSQL, which pgserver brings and starts."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from agentphone.inbox import _steps, _worker, _workflow
from agentphone.inbox._database import Database
from tests.inbox.account import Account
from tests.inbox.world import create_sqlite

NUMBERS = count()
TEMPLATE = "inbox_template"


@pytest.fixture(autouse=True)
def _quick_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "LISTEN_SECONDS", 0.02)


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.setattr(_workflow, "INITIAL_BACKOFF", 0.02)
    with closing(Account(tmp_path)) as account:
        yield account


@pytest.fixture
def briefly_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a reply that was never sent for a moment only; one that was sent is found at once."""
    monkeypatch.setattr(_steps, "CONFIRM_SECONDS", 0.2)
    monkeypatch.setattr(_steps, "LOOK_INTERVAL", 0.05)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start PostgreSQL once for all tests, and yield the URL of its server."""
    pgserver = pytest.importorskip("pgserver")
    # As root it runs as another user, who cannot enter pytest's folders.
    folder = tempfile.mkdtemp(prefix="agentphone-postgresql-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pgserver.get_server(folder)
        # No test stops it, so nothing has to reach the disk. On a busy one its stop alone took 40 s.
        _execute(server.get_uri(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield server.get_uri()
        server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database of its own for the test, which the first use creates."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inbox.db'}"
    return _name_database(request.getfixturevalue("postgresql"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of its own for the test. It is a copy: to create one takes half a second."""
    if request.param == "sqlite":
        return create_sqlite(tmp_path)
    server: str = request.getfixturevalue("postgresql")
    request.getfixturevalue("_template")
    url = _name_database(server)
    _execute(server, f"CREATE DATABASE {sa.make_url(url).database} TEMPLATE {TEMPLATE}")
    return url


@pytest.fixture(scope="session")
def _template(postgresql: str) -> None:
    template = Database(postgresql.replace("/postgres?", f"/{TEMPLATE}?"), "template")
    template.get("start")
    template.close()


def _name_database(server: str) -> str:
    return server.replace("/postgres?", f"/inbox_{os.getpid()}_{next(NUMBERS)}?")


def _execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
