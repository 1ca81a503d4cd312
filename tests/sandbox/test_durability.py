"""The database: kills, several processes, forks and locks lose nothing, and every page is read through an index."""

import os
import re
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from agentphone import Client, ConfigurationError
from agentphone.sandbox import Sandbox, _database, _messages, _schema
from tests.support.forked import PIPE, Forked
from tests.support.long import count
from tests.support.processes import SECONDS

from .helpers import ADA, AGENT, BEN, call, fork_only, get, in_child, stored_ids

# Python 3.12 and later warn about every fork in a process with threads. These tests show that it works here.
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


def test_file_is_persistent(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        sandbox.load_demo_data()
        before = get(sandbox, "/v1/conversations?limit=100")
    with Sandbox(str(path)) as sandbox:
        sandbox.load_demo_data()
        assert get(sandbox, "/v1/conversations?limit=100") == before


def test_file_that_is_not_a_database_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    path.write_text("not a database at all, but long enough to be looked at as one" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Sandbox(path)
    with pytest.raises(sqlite3.OperationalError):
        Sandbox(tmp_path / "missing" / "box.db")


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("application_id", [0, 7])
def test_another_programs_database_is_rejected_unchanged(tmp_path: Path, journal: str, application_id: int) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA journal_mode = {journal}")
        other.execute(f"PRAGMA application_id = {application_id}")
        other.execute("CREATE TABLE conversations (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError, match="another program's database, not a sandbox"):
        Sandbox(path)
    with pytest.raises(ConfigurationError, match=r"other\.db.* another program's database, not a sandbox"):
        Client(base_url=f"sandbox:{path}")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_file_of_another_version_is_rejected_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    Sandbox(path).close()
    for version in (0, _schema.SCHEMA_VERSION + 1):
        with closing(sqlite3.connect(path)) as other:
            other.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(sqlite3.DatabaseError, match="another version of the sandbox; name another file"):
            Sandbox(path)
        with pytest.raises(ConfigurationError, match=r"box\.db.* another version of the sandbox"):
            Client(base_url=f"sandbox:{path}")
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (_schema.SCHEMA_VERSION + 1,)


def test_what_was_sent_is_persistent(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    send = {"from_number": AGENT, "recipients": [ADA, BEN], "body": "Hi", "media_urls": ["https://media.example/1.jpg"]}
    with Sandbox(path) as sandbox, Sandbox(path) as other:
        sent = call(sandbox, "POST", "/v1/messages", send).json()
        group = sent["to_number"]
        text = other.receive_sms(from_number=ADA, to_number=AGENT, body="Hello", channel="imessage", group=group)
        other.receive_reaction(text["id"], "love", from_number=BEN)
        reply = {"from_number": AGENT, "to_number": group, "body": "Done", "reply_to_message_id": text["id"]}
        assert call(other, "POST", "/v1/messages", reply).status_code == 200
        before = get(sandbox, f"/v1/conversations/{sent['conversation_id']}")
        assert [len(message) for message in before["messages"]] == [10, 11, 10]
    with Sandbox(path) as sandbox:
        assert get(sandbox, f"/v1/conversations/{sent['conversation_id']}") == before
        number = {"to_number": BEN, "body": "Hi", "number_id": before["phoneNumberId"]}
        assert call(sandbox, "POST", "/v1/messages", number).json()["from_number"] == AGENT


def test_empty_file_becomes_a_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    path.touch()
    for _ in range(2):
        Sandbox(path).close()


def test_memory_path_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (":memory:", "file::memory:", "file:x?mode=memory"):
        with pytest.raises(ValueError, match="None keeps the data in memory"):
            Sandbox(path)
    with pytest.raises(ConfigurationError, match="sandbox::memory:"):
        Client(base_url="sandbox::memory:")
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_loses_no_stored_message(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    writers = [Forked(WRITER, path, stdout=PIPE) for _ in range(2)]
    reported: set[str] = set()
    for writer in writers:
        with writer:
            assert writer.stdout is not None
            reported.update(writer.stdout.readline().strip() for _ in range(300))
            writer.kill()
            # Lines printed before the kill count as well, except for a truncated last one.
            reported.update(line.strip() for line in writer.stdout if line.endswith("\n"))
            assert writer.wait(10) == -signal.SIGKILL
    assert len(reported) >= 600
    assert reported <= stored_ids(path)


def test_killed_server_loses_no_acknowledged_write(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    reported: dict[str, str] = {}
    states: dict[str, int] = {}
    enough = threading.Event()

    def load(url: str, participant: str) -> None:
        try:
            with httpx.Client(base_url=url, headers={"Authorization": "Bearer any"}, timeout=30) as client:
                for index in range(100_000):
                    body = {"direction": "inbound", "from": participant, "to": AGENT, "body": str(index)}
                    message = client.post("/sandbox/messages", json=body).json()
                    reported[message["id"]] = message["conversationId"]
                    patch = client.patch(
                        f"/v1/conversations/{message['conversationId']}", json={"metadata": {"seen": index}}
                    )
                    states[message["conversationId"]] = patch.json()["metadata"]["seen"]
                    if index == 100:
                        enough.set()
        except httpx.TransportError:
            pass  # the kill

    with Forked(SERVER, path, stdout=PIPE) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        threads = [threading.Thread(target=load, args=(url, participant)) for participant in (ADA, BEN)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        server.kill()
        for thread in threads:
            thread.join(60)
    assert reported.keys() <= stored_ids(path)
    with Sandbox(path) as sandbox:
        for conversation_id, seen in states.items():
            # The write in progress at the kill may have been stored as well.
            assert get(sandbox, f"/v1/conversations/{conversation_id}")["metadata"]["seen"] in (seen, seen + 1)


def test_many_processes_open_a_new_file_concurrently(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    code = WRITER.replace("1_000_000", "20")
    writers = [Forked(code, path, stdout=PIPE) for _ in range(5)]
    reported = [line for writer in writers for line in writer.communicate(timeout=SECONDS)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * 5
    assert stored_ids(path) == set(reported)
    assert len(reported) == 100


def test_two_sandboxes_share_one_file(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box.db") as one, Sandbox(tmp_path / "box.db") as other:
        first = one.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        second = other.send_sms(from_number=AGENT, to_number=ADA, body="Hello")
        assert first["conversationId"] == second["conversationId"]
        assert get(one, "/v1/conversations")["data"][0]["messageCount"] == 2


def write_and_count(sandbox: Sandbox) -> list[int]:
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="from the child")
    page = get(sandbox, "/v1/conversations")
    return [page["total"], sum(conversation["messageCount"] for conversation in page["data"])]


@fork_only
def test_forked_child_shares_the_file(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before")
        assert in_child(lambda: write_and_count(sandbox)) == [2, 2]
        assert in_child(lambda: in_child(lambda: write_and_count(sandbox))) == [2, 3]
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="after")
        assert write_and_count(sandbox) == [2, 5]
    assert len(stored_ids(path)) == 5


@fork_only
def test_forked_child_writes_after_its_parent_closes(tmp_path: Path) -> None:
    # An inherited open connection would write to a log file that the parent has deleted.
    path = tmp_path / "box.db"
    reader, writer = os.pipe()
    with Sandbox(path) as sandbox:
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before")
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(SECONDS)
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="one")
                os.close(writer)
                os.read(reader, 1)  # until the parent has closed
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="two")
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="parent")
    os.close(reader)
    os.close(writer)
    os.waitpid(pid, 0)
    assert len(stored_ids(path)) == 4


@fork_only
def test_forked_child_in_memory_starts_empty() -> None:
    with Sandbox() as sandbox:
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before")
        assert in_child(lambda: write_and_count(sandbox)) == [1, 1]
        assert write_and_count(sandbox) == [2, 2]


@fork_only
def test_forked_child_in_memory_has_the_demo_data() -> None:
    with Sandbox() as sandbox:
        sandbox.load_demo_data()
        page = get(sandbox, "/v1/conversations?limit=100")
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="after")
        assert in_child(lambda: get(sandbox, "/v1/conversations?limit=100")) == page


@fork_only
@pytest.mark.parametrize("in_memory", [True, False])
def test_fork_during_writes_does_not_block_the_child(tmp_path: Path, in_memory: bool) -> None:
    done = threading.Event()
    with Sandbox(None if in_memory else tmp_path / "box.db") as sandbox:

        def write() -> None:
            while not done.is_set():
                sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="busy")

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(count(8, 20)):
                assert in_child(lambda: write_and_count(sandbox))[0] in ([1] if in_memory else [1, 2])
        finally:
            done.set()
            for thread in threads:
                thread.join(SECONDS)


WRITING = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1])
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
held.close()
"""


@fork_only
def test_locked_file_does_not_delay_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with (
        Sandbox(path) as sandbox,
        ThreadPoolExecutor(1) as pool,
        Forked(WRITING, path, stdin=PIPE, stdout=PIPE) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = pool.submit(sandbox.receive_sms, from_number=ADA, to_number=AGENT, body="Hi")
        try:
            started = time.monotonic()
            for _ in range(5):
                time.sleep(0.05)
                assert in_child(lambda: get(sandbox, "/v1/conversations")["total"]) == 0
            assert time.monotonic() - started < _database.BUSY_SECONDS / 2
            assert not waiting.done()
        finally:
            holder.communicate("\n")
        assert waiting.result(SECONDS)["body"] == "Hi"


def test_file_that_stays_locked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox, closing(sqlite3.connect(path)) as other:
        monkeypatch.setattr(_database, "BUSY_SECONDS", 0.2)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")


@pytest.mark.parametrize(
    "statement",
    [
        _schema.LIST_CONVERSATIONS,
        _schema.GET_CONVERSATION,
        _schema.GET_CONVERSATION_OF_MESSAGE,
        _schema.FIND_CONVERSATION,
        _schema.GET_MESSAGE,
        _schema.GET_NUMBER,
        _schema.GET_NUMBER_OF_AGENT,
        _schema.SET_DETAILS,
        _schema.NEWEST_MESSAGES,
        _schema.OLDEST_MESSAGES,
        _schema.COUNT_CONVERSATIONS,
    ],
)
def test_pages_are_read_through_an_index(statement: str) -> None:
    with Sandbox() as sandbox, sandbox._store._database.transaction("BEGIN") as connection:
        values = (0,) * statement.count("?")
        plan = [row["detail"] for row in connection.execute("EXPLAIN QUERY PLAN " + statement, values)]
    assert len(plan) == 1, "a second step would be a sort"
    assert re.search(r"USING (COVERING |INTEGER )?(INDEX|PRIMARY KEY)", plan[0])
    if statement in (_schema.NEWEST_MESSAGES, _schema.OLDEST_MESSAGES):
        assert "(conversation=? AND received_at>? AND received_at<?)" in plan[0]


def test_late_page_costs_no_more_than_the_first() -> None:
    with Sandbox() as sandbox:
        messages = [_messages.MessageInput("inbound", AGENT, ADA, "Hi", at) for at in range(5_000)]
        sandbox._store.fill(messages, {})
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        conversation_id = get(sandbox, "/v1/conversations")["data"][0]["id"]
        costs = []
        with sandbox._store._database.transaction("BEGIN") as connection:
            connection.set_progress_handler(count, 10)  # every ten steps of SQLite's virtual machine
        for before in (None, 2_500, 300):
            steps = 0
            assert sandbox._store.messages(conversation_id, limit=200, before=before, after=None)
            costs.append(steps)
        assert max(costs) <= min(costs) + 2
