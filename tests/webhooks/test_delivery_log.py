"""The SQLite delivery log, shared by threads, forks and processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from agentphone import ConfigurationError, _delivery_log
from agentphone.webhooks import DeliveryLog, SQLiteDeliveryLog
from tests.support.processes import ENVIRONMENT, SECONDS
from tests.webhooks.deliveries import BODY, HEADERS, WEBHOOK


@frozen
class SetLog:
    """A delivery log in a set: the least that the protocol requires."""

    ids: set[str]

    def seen(self, delivery_id: str) -> bool:
        return delivery_id in self.ids

    def mark(self, delivery_id: str) -> None:
        self.ids.add(delivery_id)


def test_replay_is_seen_only_after_success(tmp_path: Path) -> None:
    logs: list[DeliveryLog] = [SetLog(set()), SQLiteDeliveryLog(tmp_path / "log.db")]
    for log in logs:
        handled = 0
        for attempt in count():
            event = WEBHOOK.parse(BODY, HEADERS)
            assert event.delivery_id is not None
            if log.seen(event.delivery_id):
                break
            if attempt < 2:
                continue  # the handler fails, so the retry must not count as a duplicate
            handled += 1
            log.mark(event.delivery_id)
        assert (attempt, handled) == (3, 1)


def test_mark_is_seen_by_every_log_of_the_file(tmp_path: Path) -> None:
    first, second = SQLiteDeliveryLog(str(tmp_path / "log.db")), SQLiteDeliveryLog(tmp_path / "log.db")
    assert not first.seen("dlv_1")
    first.mark("dlv_1")
    first.mark("dlv_1")
    second.mark("dlv_1")
    assert [log.seen("dlv_1") for log in (first, second)] == [True, True]
    assert [log.seen(other) for log in (first, second) for other in ("dlv_2", "DLV_1", "", "dlv_1 ")] == [False] * 8
    assert repr(first) == f"<SQLiteDeliveryLog {str(tmp_path / 'log.db')!r}>"


def test_mark_deletes_old_ids(tmp_path: Path) -> None:
    now = 1000.0
    log = SQLiteDeliveryLog(tmp_path / "log.db", retention=60, clock=lambda: now)
    log.mark("early")
    now = 1060.0
    log.mark("late")
    assert log.seen("early")
    now = 1060.5
    log.mark("later")
    assert [log.seen(one) for one in ("early", "late", "later")] == [False, True, True]
    with sqlite3.connect(tmp_path / "log.db") as database:
        assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (2,)
    database.close()


def test_default_retention_is_a_week(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    SQLiteDeliveryLog(path, clock=lambda: 0).mark("old")
    SQLiteDeliveryLog(path, clock=lambda: 7 * 86400).mark("new")
    assert SQLiteDeliveryLog(path).seen("old")
    SQLiteDeliveryLog(path, clock=lambda: 7 * 86400 + 1).mark("newer")
    assert not SQLiteDeliveryLog(path).seen("old")


def test_threads_can_share_a_log(tmp_path: Path) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    ids = [f"dlv_{number}" for number in range(60)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(log.mark, ids * 2))
        assert all(pool.map(log.seen, ids))


MARKING = """
import sys
from agentphone.webhooks import SQLiteDeliveryLog
log = SQLiteDeliveryLog(sys.argv[1])
for number in range(20):
    log.mark(f"{sys.argv[2]}-{number}")
    log.mark(f"shared-{number}")
    assert log.seen(f"{sys.argv[2]}-{number}")
"""


def test_processes_can_create_and_share_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", MARKING, path, str(number)], env=ENVIRONMENT) for number in range(3)
    ]
    assert [process.wait(SECONDS) for process in processes] == [0] * 3
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (80,)
    database.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_children_forked_while_threads_mark_can_mark(tmp_path: Path) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    is_done = threading.Event()

    def work(name: str) -> None:
        for number in count():
            if is_done.wait(0.003):  # so that the children get a chance to lock the file
                return
            log.mark(f"{name}-{number}")

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work, name) for name in "abc"]
        try:
            for number in range(8):
                child = os.fork()
                if child == 0:
                    signal.alarm(SECONDS)  # a hang kills the child
                    try:
                        log.mark(f"child-{number}")
                    finally:
                        os._exit(0 if log.seen(f"child-{number}") else 1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            is_done.set()
        for worker in workers:
            worker.result()
    assert all(log.seen(f"child-{number}") for number in range(8))


HOLDING = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1])
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
held.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_locked_log_blocks_no_other_log_and_no_fork(tmp_path: Path) -> None:
    locked, other = SQLiteDeliveryLog(tmp_path / "locked.db"), SQLiteDeliveryLog(tmp_path / "other.db")
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "locked.db")]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        ThreadPoolExecutor(2) as pool,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting: list[Future[Any]] = [pool.submit(locked.mark, "dlv_1"), pool.submit(locked.seen, "dlv_1")]
        try:
            time.sleep(0.1)
            started = time.monotonic()
            for number in range(10):
                other.mark(f"dlv_{number}")
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            assert time.monotonic() - started < 15
            assert not any(one.done() for one in waiting)
        finally:
            holder.communicate(b"\n")
        for one in waiting:
            one.result(SECONDS)
    assert locked.seen("dlv_1")


def test_permanently_locked_log_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery_log, "BUSY_SECONDS", 0.2)
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    with closing(sqlite3.connect(tmp_path / "log.db")) as held:
        held.execute("BEGIN EXCLUSIVE")
        for call in (log.seen, log.mark):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                call("dlv_1")
        with pytest.raises(ConfigurationError, match="locked"):
            SQLiteDeliveryLog(tmp_path / "log.db")


def test_database_of_another_program_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"theirs\.db' cannot be used: it is the database of another program"):
        SQLiteDeliveryLog(path)
    assert path.read_bytes() == before


def test_path_is_resolved_at_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    log = SQLiteDeliveryLog("log.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.mark("dlv_1")
    assert SQLiteDeliveryLog(tmp_path / "log.db").seen("dlv_1")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_log_can_be_pickled(tmp_path: Path) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(log.mark, ["dlv_1"])
    assert log.seen("dlv_1")


def test_file_that_is_not_a_log_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, though it is long enough to be read as the header of one" * 20)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE deliveries (number INTEGER)")
    database.close()
    for name in ("text", "other.db", "no folder/log.db", "."):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            SQLiteDeliveryLog(tmp_path / name)
    with pytest.raises(ConfigurationError, match="path must be a file"):
        SQLiteDeliveryLog(":memory:")


@pytest.mark.parametrize("retention", [0, -1, float("nan"), float("inf")])
def test_invalid_retention_is_rejected(tmp_path: Path, retention: float) -> None:
    with pytest.raises(ConfigurationError, match="retention"):
        SQLiteDeliveryLog(tmp_path / "log.db", retention=retention)


@pytest.mark.parametrize("clock", [5, None, "now"])
def test_invalid_clock_is_a_type_error(tmp_path: Path, clock: Any) -> None:
    with pytest.raises(TypeError, match="clock must be a function"):
        SQLiteDeliveryLog(tmp_path / "log.db", clock=clock)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("delivery_id", [None, 5, b"dlv_1"])
def test_invalid_id_is_a_type_error(tmp_path: Path, delivery_id: Any) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    for call in (log.seen, log.mark):
        with pytest.raises(TypeError, match=r"event\.delivery_id is None"):
            call(delivery_id)


LOADED = """
import sys
import agentphone.webhooks
print("sqlite3" in sys.modules)
agentphone.webhooks.SQLiteDeliveryLog(sys.argv[1])
print("sqlite3" in sys.modules)
"""


def test_sqlite_is_imported_only_for_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", LOADED, str(tmp_path / "log.db")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=SECONDS, check=True)
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
