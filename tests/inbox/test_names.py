"""The lock on a worker's name: held by one, kept while the database restarts, and free once the process has ended."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import sqlalchemy as sa

from agentphone import ConfigurationError
from agentphone.inbox._database import Database
from agentphone.inbox._worker_lock import hold_name, name_lock
from tests.inbox import processes
from tests.support.processes import SECONDS


def hold(database: str, held: Connection) -> None:
    """Hold a name until the process is killed."""
    with hold_name(Database(database, "inbox"), "inbox", "one"):
        held.send(True)
        time.sleep(SECONDS)


def test_name_is_held_by_one_process(database: str, tmp_path: Path) -> None:
    opened = Database(database, "inbox")
    held, sender = multiprocessing.Pipe()
    process = processes.start(hold, database, sender, log=tmp_path / "log")
    assert held.poll(SECONDS), (tmp_path / "log").read_text()
    taken = pytest.raises(ConfigurationError, match="name='one': a worker of this name is running already")
    with taken, hold_name(opened, "inbox", "one", patience=0):
        pass
    for inbox, name in (("inbox", "two"), ("other", "one")):
        with hold_name(opened, inbox, name, patience=0):
            pass
    process.kill()
    process.join(SECONDS)
    with hold_name(opened, "inbox", "one", patience=SECONDS) as lock:
        assert lock.acquire(), "it keeps what it has"
    opened.close()


def test_lost_connection_is_replaced(postgresql: str) -> None:
    opened = Database(postgresql.replace("/postgres?", "/inbox_names?"), "inbox")
    opened.get("start")
    other = name_lock(opened, "inbox", "one")
    with hold_name(opened, "inbox", "one") as lock:
        with opened.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            end_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()"
            connection.execute(sa.text(f"{end_others} AND datname = current_database()"))
        assert lock.acquire()
        assert not other.acquire()
    assert other.acquire()
    other.release()
    opened.close()
