"""No end of a process loses a delivery, none is attempted twice at once, and no fork or exit waits for the thread."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, cast

import httpx
import pytest

from agentphone.sandbox import Sandbox, _delivery, _store

from .conftest import ADA, AGENT
from .receiver import SECONDS, SECRET, Received, Receiver, receiving, until
from .test_durability import fork_only, in_a_child, stored_ids
from .test_webhooks import statuses, threads

# Python 3.12 and later warn of every fork beside threads; that it works here is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

PYTHON = (sys.executable, "-W", "error", "-c")
WRITER = """
import sys
from agentphone.sandbox import Sandbox, _delivery
_delivery.CLAIM_SECONDS = 3.0
sandbox = Sandbox(sys.argv[1], retry_scale=0.001)
sandbox.set_webhook(sys.argv[2], sys.argv[3])
for index in range(int(sys.argv[4])):
    number = f"+1555555{index % 20:04d}"
    message = sandbox.receive_sms(from_number=number, to_number="+15555550100", body=str(index))
    print(message["id"], flush=True)
"""
WAITS = WRITER + "sys.stdin.read()\n"
SERVER = """
import sys
from agentphone.sandbox.server import serve
sys.exit(serve(port=0, db=sys.argv[1], retry_scale=0.001))
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [*PYTHON, code, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def lines(running: subprocess.Popen[str], count: int) -> list[str]:
    return [cast("IO[str]", running.stdout).readline().strip() for _ in range(count)]


def delivered(sandbox: Sandbox) -> set[tuple[str, str]]:
    return {(delivery["messageId"], delivery["status"]) for delivery in sandbox.deliveries(1000)}


def message_ids(received: list[Received]) -> Counter[str]:
    return Counter(one.payload["data"]["messageId"] for one in received)


def test_a_kill_at_any_moment_loses_no_delivery(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    for _ in range(4):  # Each kill comes between some message and its delivery, and amid some attempts.
        with process(WRITER, path, receiver.url, SECRET, 100_000) as writer:
            lines(writer, 20)
            writer.kill()
            assert writer.wait(SECONDS) == -signal.SIGKILL
    with Sandbox(path) as sandbox:
        until(lambda: set(statuses(sandbox)) == {"delivered"})
        assert len(sandbox.deliveries(1000)) == len(stored_ids(path))
    arrived = message_ids(receiver.accepted)
    assert set(arrived) == stored_ids(path)
    # One whose answer the kill came before arrives again, under its own id.
    assert len({received.id for received in receiver.accepted}) == len(arrived)


DIES = """
import os
from agentphone.sandbox._store import Store
Store.{step} = lambda *_, **__: os.kill(os.getpid(), 9)
"""


def test_a_kill_while_a_message_is_stored_leaves_neither_it_nor_its_delivery(
    receiver: Receiver, tmp_path: Path
) -> None:
    path = tmp_path / "box.db"
    with process(DIES.format(step="_enqueue") + WAITS, path, receiver.url, SECRET, 1) as writer:
        assert writer.wait(SECONDS) == -signal.SIGKILL
    with Sandbox(path) as sandbox:
        assert (stored_ids(path), sandbox.deliveries()) == (set(), [])


KILLED = {
    "between storing and attempting": ("claim", 0),
    "between being taken and noting it": ("finish", 1),
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_kill_at_either_end_of_an_attempt_is_followed_by_another(
    receiver: Receiver, tmp_path: Path, moment: str
) -> None:
    path = tmp_path / "box.db"
    step, before = KILLED[moment]
    with process(DIES.format(step=step) + WAITS, path, receiver.url, SECRET, 1) as writer:
        assert writer.wait(SECONDS) == -signal.SIGKILL
    assert len(receiver.accepted) == before
    with Sandbox(path) as sandbox:
        until(lambda: statuses(sandbox) == {"delivered": 1})
    assert message_ids(receiver.accepted) == dict.fromkeys(stored_ids(path), before + 1)
    assert len({(received.id, received.body) for received in receiver.accepted}) == 1


def test_a_kill_in_the_middle_of_an_attempt_is_followed_by_another(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    receiver.write = lambda handler: handler.rfile.read(1)
    with process(WAITS, path, receiver.url, SECRET, 3) as writer:
        lines(writer, 3)
        until(lambda: len(receiver.received) == 3)
        writer.kill()
        writer.wait(SECONDS)
    receiver.write = None
    with Sandbox(path) as sandbox:
        until(lambda: statuses(sandbox) == {"delivered": 3})
        assert {len(delivery["attempts"]) for delivery in sandbox.deliveries()} == {1}
    assert {(received.id, received.body) for received in receiver.received[:3]} == {
        (received.id, received.body) for received in receiver.accepted
    }
    assert len(receiver.received) == 6


def test_processes_on_one_file_never_attempt_one_delivery_at_once(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    attempts: Counter[str] = Counter()
    here = threading.local()  # Each attempt has a thread of the receiver's own.
    track_call: Counter[str] = Counter()
    lock = threading.Lock()
    overlaps: list[str] = []

    def answer(received: Received) -> int:
        with lock:
            track_call[received.id] += 1
            attempts[received.id] += 1
            here.fails = attempts[received.id] == 1
            if track_call[received.id] > 1:
                overlaps.append(received.id)
        time.sleep(0.02)
        with lock:
            track_call[received.id] -= 1
        return 500 if here.fails else 200

    receiver.answer = answer
    with (
        process(WAITS, path, receiver.url, SECRET, 60) as one,
        process(WAITS, path, receiver.url, SECRET, 60) as other,
        Sandbox(path, retry_scale=0.001) as sandbox,
    ):
        ids = {*lines(one, 60), *lines(other, 60)}
        until(lambda: statuses(sandbox) == {"delivered": 120})
    assert overlaps == []
    assert set(attempts.values()) == {2}
    assert message_ids(receiver.accepted) == dict.fromkeys(ids, 1)


def test_what_another_process_stores_is_delivered_by_whoever_runs(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        without_a_thread = "from agentphone.sandbox import _delivery\n_delivery.Deliverer.wake = print\n" + WRITER
        with process(without_a_thread, path, receiver.url, SECRET, 5) as writer:
            assert writer.wait(SECONDS) == 0
        until(lambda: statuses(sandbox) == {"delivered": 5})


def test_a_server_delivers_and_a_killed_one_goes_on_when_it_is_started_again(
    receiver: Receiver, tmp_path: Path
) -> None:
    path = tmp_path / "box.db"
    receiver.answer = lambda _: 503
    headers = {"Authorization": "Bearer any"}

    def client(server: subprocess.Popen[str]) -> httpx.Client:
        return httpx.Client(base_url=lines(server, 1)[0].split()[-1], headers=headers, timeout=SECONDS)

    def message_order(calls: httpx.Client) -> list[str]:
        return [delivery["status"] for delivery in calls.get("/sandbox/deliveries").json()["data"]]

    with process(SERVER, path) as server, client(server) as calls:
        calls.put("/sandbox/webhook", json={"url": receiver.url, "secret": SECRET}).raise_for_status()
        for text in ("one", "two"):
            body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": text}
            calls.post("/sandbox/messages", json=body).raise_for_status()
        until(lambda: message_order(calls) == ["failed", "failed"])
        receiver.write = lambda handler: handler.rfile.read(1)
        calls.post("/sandbox/messages", json=body | {"body": "three"}).raise_for_status()
        until(lambda: len(receiver.received) == 13)
        server.send_signal(signal.SIGTERM)
        output, errors = server.communicate(timeout=SECONDS)
    assert (output, server.returncode) == ("", 0)
    assert errors.count("given up after 6 attempts") == errors.count("\n") == 2
    assert SECRET not in errors
    receiver.write = None
    receiver.answer = lambda _: 200
    with process(SERVER, path) as server, client(server) as calls:
        until(lambda: message_order(calls) == ["delivered", "failed", "failed"])
    assert receiver.received[-1].text == "three"


@pytest.mark.parametrize("end", ["", "sandbox.close()", "sys.exit(3)"])
@pytest.mark.parametrize("db", ["None", "sys.argv[1]"])
def test_an_exit_amid_attempts_waits_for_none_and_says_nothing(
    receiver: Receiver, tmp_path: Path, end: str, db: str
) -> None:
    receiver.write = lambda handler: handler.rfile.read(1)
    code = WRITER.replace("Sandbox(sys.argv[1]", f"Sandbox({db}") + f"sys.stdin.readline()\n{end}\n"
    code = code.replace("_delivery.CLAIM", "_delivery.ANSWER_SECONDS = 1000.0\n_delivery.CLAIM")
    with process(code, tmp_path / "box.db", receiver.url.replace("127.0.0.1", "localhost"), SECRET, 20) as writer:
        lines(writer, 20)
        until(lambda: len(receiver.received) == 16)
        assert writer.communicate("\n", timeout=SECONDS) == ("", "")
        assert writer.returncode == (3 if "3" in end else 0)


HANGS = """
import socket, time
socket.getaddrinfo = lambda *_, **__: print("looked up", flush=True) or time.sleep(1000)
"""


def test_an_exit_does_not_wait_for_a_name_that_is_looked_up(tmp_path: Path) -> None:
    with process(HANGS + WAITS, tmp_path / "box.db", "http://localhost:1/", SECRET, 1) as writer:
        assert "looked up" in lines(writer, 2)
        assert writer.communicate("", timeout=SECONDS)[1] == ""
        assert writer.returncode == 0


IMPORTS = """
import sys, time
from agentphone.sandbox import Sandbox
with Sandbox(retry_scale=0) as sandbox:
    sandbox.set_webhook(sys.argv[1], sys.argv[2])
    before = set(sys.modules)
    sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
    while sandbox.deliveries()[0]["status"] == "pending":
        time.sleep(0.01)
    print(sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_thread_imports_nothing_so_that_no_fork_takes_an_import_lock_with_it(
    receiver: Receiver, scheme: str
) -> None:
    url = receiver.url.replace("http", scheme).replace("127.0.0.1", "localhost")
    with process(IMPORTS, url, SECRET) as importer:
        assert importer.communicate(timeout=SECONDS) == ("[]\n", "")


@fork_only
def test_a_fork_finds_the_thread_between_two_steps_so_that_no_lock_is_left_taken(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    make_headers = _delivery._headers

    def make_slowly(delivery: _store.Delivery, timestamp: int) -> dict[str, str]:
        with lock:
            time.sleep(0.005)
            return make_headers(delivery, timestamp)

    monkeypatch.setattr(_delivery, "_headers", make_slowly)
    monkeypatch.setattr(_delivery, "PAUSE_SECONDS", float(SECONDS))
    with Sandbox() as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        for _ in range(100):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        assert [in_a_child(lock.locked) for _ in range(10)] == [False] * 10
        until(lambda: statuses(sandbox) == {"delivered": 100})


@fork_only
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_forked_child_delivers_with_a_thread_of_its_own(receiver: Receiver, tmp_path: Path, in_memory: bool) -> None:
    with Sandbox(None if in_memory else tmp_path / "box.db") as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="parent")
        until(lambda: statuses(sandbox) == {"delivered": 1})

        def work() -> list[str]:
            before = len(threads())
            sandbox.set_webhook(receiver.url, SECRET)  # In memory the webhook is gone with all else.
            message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="child")
            until(lambda: sandbox.deliveries()[0]["status"] == "delivered")
            sandbox.close()
            return [message["id"], str(before), *threads()]

        child_message, before, *left = in_a_child(work)
        assert (before, left) == ("0", [])
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="parent again")
        until(lambda: set(statuses(sandbox)) == {"delivered"})
    assert [received.text for received in receiver.received] == ["parent", "child", "parent again"]
    assert receiver.received[1].payload["data"]["messageId"] == child_message


@fork_only
@pytest.mark.parametrize("in_memory", [True, False])
def test_forks_amid_deliveries_neither_hang_nor_lose_one(receiver: Receiver, tmp_path: Path, in_memory: bool) -> None:
    done = threading.Event()
    stored: list[str] = []
    with Sandbox(None if in_memory else tmp_path / "box.db") as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)

        def write() -> None:
            while not done.is_set():
                # As fast as it goes out and no faster, else a child's own would wait behind all of these.
                until(lambda: len(stored) < len(receiver.received) + 20 or done.is_set())
                stored.append(sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="busy")["id"])

        def work() -> str:
            sandbox.set_webhook(receiver.url, SECRET)
            message_id: str = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="child")["id"]
            until(lambda: (message_id, "delivered") in delivered(sandbox))
            sandbox.close()  # Gives back what it has claimed of the parent's.
            return message_id

        thread = threading.Thread(target=write)
        thread.start()
        try:
            children = [in_a_child(work) for _ in range(10)]
        finally:
            done.set()
            thread.join(SECONDS)
        until(lambda: set(statuses(sandbox)) == {"delivered"})
    assert set(message_ids(receiver.accepted)) == {*stored, *children}


CHILD_EXITS = """
import os, sys, time, warnings
from agentphone.sandbox import Sandbox
warnings.simplefilter("ignore", DeprecationWarning)  # Of a fork beside threads, which is the purpose.
sandbox = Sandbox(retry_scale=0.001)
sandbox.set_webhook(sys.argv[1], sys.argv[2])
sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="parent")
sys.stdin.readline()
child = os.fork()
if child:
    print(os.waitpid(child, 0)[1], flush=True)
    while {delivery["status"] for delivery in sandbox.deliveries()} != {"delivered"}:
        time.sleep(0.01)
"""


@fork_only
def test_a_child_that_ends_in_the_ordinary_way_leaves_its_parents_attempts_alone(receiver: Receiver) -> None:
    release = threading.Event()

    def hold(handler: BaseHTTPRequestHandler) -> None:
        release.wait(SECONDS)
        handler.send_response(200)
        handler.end_headers()

    receiver.write = hold
    with process(CHILD_EXITS, receiver.url, SECRET) as parent:
        until(lambda: receiver.received)
        assert parent.stdin is not None
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert lines(parent, 1) == ["0"]
        release.set()
        assert parent.communicate(timeout=SECONDS) == ("", "")
        assert parent.returncode == 0
    assert len(receiver.received) == 1
