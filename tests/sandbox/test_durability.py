"""A file outlives its process, may be shared, and no page costs more for lying far back."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import Client, ConfigurationError
from agentphone.sandbox import Sandbox, _store

from .conftest import ADA, AGENT, BEN

# Python 3.12 and later warn of every fork beside threads; that it works here is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

WRITER = """
import sys
from agentphone.sandbox import Sandbox
sandbox = Sandbox(sys.argv[1])
for index in range(1_000_000):
    message = sandbox.receive_sms(from_number=f"+1555555{index % 10:04d}", to_number="+15555550100", body=str(index))
    print(message["id"], flush=True)
"""
SERVER = """
import sys
from agentphone.sandbox.server import serve
sys.exit(serve(port=0, db=sys.argv[1]))
"""


def get(sandbox: Sandbox, path: str) -> Any:
    async def read() -> Any:
        headers = {"Authorization": "Bearer any"}
        async with httpx.AsyncClient(transport=sandbox.transport(), base_url="http://s", headers=headers) as client:
            return (await client.get(path)).json()

    return asyncio.run(read())


def stored_ids(path: Path) -> set[str]:
    """Read all message ids as anybody with SQLite would, and let SQLite check the file."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts = "SELECT count(*) FROM messages WHERE conversation = serial"
        wrong = connection.execute(f"SELECT * FROM conversations WHERE message_count != ({counts})").fetchall()
        assert wrong == []
        return {row[0] for row in connection.execute("SELECT id FROM messages")}
    finally:
        connection.close()


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        sandbox.load_demo_data()
        before = get(sandbox, "/v1/conversations?limit=100")
    with Sandbox(str(path)) as sandbox:
        sandbox.load_demo_data()
        assert get(sandbox, "/v1/conversations?limit=100") == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    path.write_text("not a database at all, but long enough to be looked at as one" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Sandbox(path)
    with pytest.raises(sqlite3.OperationalError):
        Sandbox(tmp_path / "missing" / "box.db")


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("application_id", [0, 7])
def test_somebody_elses_database_is_refused_and_left_as_it_was(
    tmp_path: Path, journal: str, application_id: int
) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute(f"PRAGMA journal_mode = {journal}")
        theirs.execute(f"PRAGMA application_id = {application_id}")
        theirs.execute("CREATE TABLE conversations (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError, match="no sandbox but a database of something else"):
        Sandbox(path)
    with pytest.raises(ConfigurationError, match=r"theirs\.db.* no sandbox but a database of something else"):
        Client(base_url=f"sandbox:{path}")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_empty_becomes_a_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    path.touch()
    for _ in range(2):
        Sandbox(path).close()


def test_in_memory_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="None keeps the data in memory"):
        Sandbox(":memory:")
    with pytest.raises(ConfigurationError, match="sandbox::memory:"):
        Client(base_url="sandbox::memory:")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_has_lost_nothing_that_it_was_told_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told: set[str] = set()
    for writer in writers:
        with writer:
            assert writer.stdout is not None
            told.update(writer.stdout.readline().strip() for _ in range(300))
            writer.kill()
            # What was said before the kill arrived counts as well, except for a line cut in the middle.
            told.update(line.strip() for line in writer.stdout if line.endswith("\n"))
            assert writer.wait(10) == -signal.SIGKILL
    assert len(told) >= 600
    assert told <= stored_ids(path)


def test_a_killed_server_has_lost_no_acknowledged_message_or_metadata(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    told: dict[str, str] = {}
    states: dict[str, int] = {}
    enough = threading.Event()

    def load(url: str, participant: str) -> None:
        try:
            with httpx.Client(base_url=url, headers={"Authorization": "Bearer any"}, timeout=30) as client:
                for index in range(100_000):
                    body = {"direction": "inbound", "from": participant, "to": AGENT, "body": str(index)}
                    message = client.post("/sandbox/messages", json=body).json()
                    told[message["id"]] = message["conversationId"]
                    patch = client.patch(
                        f"/v1/conversations/{message['conversationId']}", json={"metadata": {"seen": index}}
                    )
                    states[message["conversationId"]] = patch.json()["metadata"]["seen"]
                    if index == 100:
                        enough.set()
        except httpx.TransportError:
            pass  # The kill.

    with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        threads = [threading.Thread(target=load, args=(url, participant)) for participant in (ADA, BEN)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        server.kill()
        for thread in threads:
            thread.join(60)
    assert told.keys() <= stored_ids(path)
    with Sandbox(path) as sandbox:
        for conversation_id, seen in states.items():
            # The write in flight when the kill came may be there as well.
            assert get(sandbox, f"/v1/conversations/{conversation_id}")["metadata"]["seen"] in (seen, seen + 1)


def test_many_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    code = WRITER.replace("1_000_000", "20")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    told = [line for writer in writers for line in writer.communicate(timeout=60)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * 8
    assert stored_ids(path) == set(told)
    assert len(told) == 160


def test_two_sandboxes_on_one_file_see_each_others_writes(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box.db") as one, Sandbox(tmp_path / "box.db") as other:
        first = one.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        second = other.send_sms(from_number=AGENT, to_number=ADA, body="Hello")
        assert first["conversationId"] == second["conversationId"]
        assert get(one, "/v1/conversations")["data"][0]["messageCount"] == 2


def in_a_child(work: Callable[[], object]) -> Any:
    """Run `work` in a forked child and give what it returns; a child that hangs is killed by its own alarm."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def write_and_count(sandbox: Sandbox) -> list[int]:
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="from the child")
    page = get(sandbox, "/v1/conversations")
    return [page["total"], sum(conversation["messageCount"] for conversation in page["data"])]


fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@fork_only
def test_a_forked_child_shares_the_file_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before")
        assert in_a_child(lambda: write_and_count(sandbox)) == [2, 2]
        assert in_a_child(lambda: in_a_child(lambda: write_and_count(sandbox))) == [2, 3]
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="after")
        assert write_and_count(sandbox) == [2, 5]
    assert len(stored_ids(path)) == 5


@fork_only
def test_a_child_that_outlives_its_parents_connection_loses_nothing(tmp_path: Path) -> None:
    # A connection inherited open would go on writing to a log that the parent has deleted.
    path = tmp_path / "box.db"
    reader, writer = os.pipe()
    with Sandbox(path) as sandbox:
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before")
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(30)
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="one")
                os.close(writer)
                os.read(reader, 1)  # Until the parent has closed.
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="two")
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="parent")
    os.close(reader)
    os.close(writer)
    os.waitpid(pid, 0)
    assert len(stored_ids(path)) == 4


@fork_only
def test_a_forked_child_has_an_empty_memory_of_its_own() -> None:
    with Sandbox() as sandbox:
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before")
        assert in_a_child(lambda: write_and_count(sandbox)) == [1, 1]
        assert write_and_count(sandbox) == [2, 2]


@fork_only
def test_a_forked_child_has_the_same_demonstration_data() -> None:
    with Sandbox() as sandbox:
        sandbox.load_demo_data()
        page = get(sandbox, "/v1/conversations?limit=100")
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="after")
        assert in_a_child(lambda: get(sandbox, "/v1/conversations?limit=100")) == page


@fork_only
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_fork_while_other_threads_write_does_not_block_the_child(tmp_path: Path, in_memory: bool) -> None:
    done = threading.Event()
    with Sandbox(None if in_memory else tmp_path / "box.db") as sandbox:

        def write() -> None:
            while not done.is_set():
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="busy")

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                assert in_a_child(lambda: write_and_count(sandbox))[0] in ([1] if in_memory else [1, 2])
        finally:
            done.set()
            for thread in threads:
                thread.join(30)


WRITING = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1])
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
held.close()
"""


@fork_only
def test_a_file_that_another_process_is_writing_holds_up_no_fork(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    command = [sys.executable, "-c", WRITING, str(path)]
    with (
        Sandbox(path) as sandbox,
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = pool.submit(sandbox.receive_sms, from_number=ADA, to_number=AGENT, body="Hi")
        try:
            started = time.monotonic()
            for _ in range(5):
                time.sleep(0.05)
                assert in_a_child(lambda: get(sandbox, "/v1/conversations")["total"]) == 0
            assert time.monotonic() - started < _store.BUSY_SECONDS / 2
            assert not waiting.done()
        finally:
            holder.communicate(b"\n")
        assert waiting.result(30)["body"] == "Hi"


def test_a_file_that_stays_locked_is_an_error_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox, closing(sqlite3.connect(path)) as other:
        monkeypatch.setattr(_store, "BUSY_SECONDS", 0.2)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")


@pytest.mark.parametrize("statement", [_store.PAGE, _store.ONE, _store.NEWEST, _store.OLDEST, _store.TOTAL])
def test_every_page_comes_from_an_index(statement: str) -> None:
    with Sandbox() as sandbox, sandbox._store._transaction("BEGIN") as connection:
        values = (0,) * statement.count("?")
        plan = [row["detail"] for row in connection.execute("EXPLAIN QUERY PLAN " + statement, values)]
    assert len(plan) == 1, "a second step would be a sort"
    assert re.search(r"USING (COVERING )?(INDEX|PRIMARY KEY)", plan[0])
    if statement in (_store.NEWEST, _store.OLDEST):
        assert "(conversation=? AND received_at>? AND received_at<?)" in plan[0]


def test_a_page_far_back_costs_as_many_steps_as_the_first() -> None:
    with Sandbox() as sandbox:
        messages = [_store.NewMessage("inbound", AGENT, ADA, "Hi", at) for at in range(20_000)]
        sandbox._store.fill(messages, {})
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        conversation_id = get(sandbox, "/v1/conversations")["data"][0]["id"]
        costs = []
        with sandbox._store._transaction("BEGIN") as connection:
            connection.set_progress_handler(count, 10)  # Every ten steps of SQLite's machine: no clock involved.
        for before in (None, 10_000, 300):
            steps = 0
            assert sandbox._store.messages(conversation_id, limit=200, before=before, after=None)
            costs.append(steps)
        assert max(costs) <= min(costs) + 2
