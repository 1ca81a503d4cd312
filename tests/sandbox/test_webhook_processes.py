"""Webhooks and processes: kills lose no delivery, claims exclude each other, forks and exits never wait."""

import signal
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

from agentphone import _loop_thread
from agentphone.sandbox import Sandbox, _deliveries, _dispatcher
from tests.support.forked import PIPE, Forked
from tests.support.long import count
from tests.support.processes import PYTHON, SECONDS, run

from .helpers import ADA, AGENT, fork_only, in_child, statuses, stored_ids, webhook_threads
from .receiver import SECRET, Received, Receiver, until

# Python 3.12 and later warn about every fork in a process with threads. These tests show that it works here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

WRITER = """
import sys
from agentphone.sandbox import Sandbox, _dispatcher
_dispatcher.CLAIM_MARGIN = -7.0  # claims of 3 seconds
sandbox = Sandbox(sys.argv[1], retry_scale=0.001)
sandbox.set_webhook(sys.argv[2], sys.argv[3], timeout=10.0)
for index in range(int(sys.argv[4])):
    number = f"+1555555{index % 20:04d}"
    message = sandbox.receive_sms(from_number=number, to_number="+15555550100", body=str(index))
    print(message["id"], flush=True)
"""
NEVER_SENDS = """
from agentphone.sandbox import _dispatcher
_dispatcher.WebhookDispatcher.wake = lambda _: None
"""
WAITS = WRITER + "sys.stdin.read()\n"
SERVER = """
import sys
from agentphone.sandbox.server import serve
sys.exit(serve(port=0, db=sys.argv[1], retry_scale=0.001))
"""


@contextmanager
def process(code: str, *arguments: object) -> Iterator[Forked]:
    with Forked(code, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def lines(running: Forked, count: int) -> list[str]:
    return [cast("IO[str]", running.stdout).readline().strip() for _ in range(count)]


def delivered(sandbox: Sandbox) -> set[tuple[str, str]]:
    return {(delivery["messageId"], delivery["status"]) for delivery in sandbox.deliveries(1000)}


def message_ids(received: list[Received]) -> Counter[str]:
    return Counter(one.payload["data"]["messageId"] for one in received)


def test_kill_loses_no_delivery(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    for _ in range(4):  # each kill hits some message before its delivery, and some attempts in progress
        with process(WRITER, path, receiver.url, SECRET, 100_000) as writer:
            lines(writer, 20)
            writer.kill()
            assert writer.wait(SECONDS) == -signal.SIGKILL
    with Sandbox(path) as sandbox:
        until(lambda: set(statuses(sandbox)) == {"delivered"})
        assert len(sandbox.deliveries(1000)) == len(stored_ids(path))
    arrived = message_ids(receiver.accepted)
    assert set(arrived) == stored_ids(path)
    # A delivery whose response the kill preceded arrives again, with the same id.
    assert len({received.id for received in receiver.accepted}) == len(arrived)


DIES = """
import os
from agentphone.sandbox._deliveries import DeliveryQueue
DeliveryQueue.{step} = lambda *_, **__: os.kill(os.getpid(), 9)
"""


def test_kill_during_enqueue_stores_nothing(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with process(DIES.format(step="enqueue") + WAITS, path, receiver.url, SECRET, 1) as writer:
        assert writer.wait(SECONDS) == -signal.SIGKILL
    with Sandbox(path) as sandbox:
        assert (stored_ids(path), sandbox.deliveries()) == (set(), [])


KILLED = {
    "before an attempt": ("claim", 0),
    "after an attempt": ("finish", 1),
}


@pytest.mark.parametrize("moment", KILLED)
def test_kill_around_an_attempt_repeats_it(receiver: Receiver, tmp_path: Path, moment: str) -> None:
    path = tmp_path / "box.db"
    step, before = KILLED[moment]
    with process(DIES.format(step=step) + WAITS, path, receiver.url, SECRET, 1) as writer:
        assert writer.wait(SECONDS) == -signal.SIGKILL
    assert len(receiver.accepted) == before
    with Sandbox(path) as sandbox:
        until(lambda: statuses(sandbox) == {"delivered": 1})
    assert message_ids(receiver.accepted) == dict.fromkeys(stored_ids(path), before + 1)
    assert len({(received.id, received.body) for received in receiver.accepted}) == 1


def test_kill_during_an_attempt_repeats_it(receiver: Receiver, tmp_path: Path) -> None:
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


def test_processes_never_attempt_a_delivery_concurrently(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    attempts: Counter[str] = Counter()
    here = threading.local()  # the receiver handles each attempt in its own thread
    running: Counter[str] = Counter()
    lock = threading.Lock()
    overlaps: list[str] = []

    def respond(received: Received) -> int:
        with lock:
            running[received.id] += 1
            attempts[received.id] += 1
            here.fails = attempts[received.id] == 1
            if running[received.id] > 1:
                overlaps.append(received.id)
        time.sleep(0.02)
        with lock:
            running[received.id] -= 1
        return 500 if here.fails else 200

    receiver.respond = respond
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


def test_messages_of_another_process_are_delivered(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        with process(NEVER_SENDS + WRITER, path, receiver.url, SECRET, 5) as writer:
            assert writer.wait(SECONDS) == 0
        until(lambda: statuses(sandbox) == {"delivered": 5})


def test_restarted_server_continues_deliveries(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    receiver.respond = lambda _: 503
    headers = {"Authorization": "Bearer any"}

    def client(server: Forked) -> httpx.Client:
        return httpx.Client(base_url=lines(server, 1)[0].split()[-1], headers=headers, timeout=SECONDS)

    def delivery_statuses(calls: httpx.Client) -> list[str]:
        return [delivery["status"] for delivery in calls.get("/sandbox/deliveries").json()["data"]]

    with process(SERVER, path) as server, client(server) as calls:
        calls.put("/sandbox/webhook", json={"url": receiver.url, "secret": SECRET}).raise_for_status()
        for text in ("one", "two"):
            body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": text}
            calls.post("/sandbox/messages", json=body).raise_for_status()
        until(lambda: delivery_statuses(calls) == ["failed", "failed"])
        receiver.write = lambda handler: handler.rfile.read(1)
        calls.post("/sandbox/messages", json=body | {"body": "three"}).raise_for_status()
        until(lambda: len(receiver.received) == 13)
        server.send_signal(signal.SIGTERM)
        output, errors = server.communicate(timeout=SECONDS)
    assert (output, server.returncode) == ("", 0)
    assert errors.count("failed after 6 attempts") == errors.count("\n") == 2
    assert SECRET not in errors
    receiver.write = None
    receiver.respond = lambda _: 200
    with process(SERVER, path) as server, client(server) as calls:
        until(lambda: delivery_statuses(calls) == ["delivered", "failed", "failed"])
    assert receiver.received[-1].text == "three"


@pytest.mark.parametrize("end", ["", "sandbox.close()", "sys.exit(3)"])
@pytest.mark.parametrize("db", ["None", "sys.argv[1]"])
def test_exit_does_not_wait_for_attempts(receiver: Receiver, tmp_path: Path, end: str, db: str) -> None:
    receiver.write = lambda handler: handler.rfile.read(1)
    code = "import gc\ngc.unfreeze()\n" + WRITER + f"sys.stdin.readline()\n{end}\n"
    code = code.replace("Sandbox(sys.argv[1]", f"Sandbox({db}")
    code = code.replace("timeout=10.0", "timeout=1000.0")
    with process(code, tmp_path / "box.db", receiver.url.replace("127.0.0.1", "localhost"), SECRET, 20) as writer:
        lines(writer, 20)
        until(lambda: len(receiver.received) == 16)
        assert writer.communicate("\n", timeout=SECONDS) == ("", "")
        assert writer.returncode == (3 if "3" in end else 0)


HANGS = """
import os, socket, time
# Not by `print`: the exit would wait for its lock, which this daemon thread may hold.
socket.getaddrinfo = lambda *_, **__: os.write(1, b"looked up\\n") and time.sleep(1000)
"""


def test_exit_does_not_wait_for_a_name_lookup(tmp_path: Path) -> None:
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
def test_webhook_thread_imports_nothing(receiver: Receiver, scheme: str) -> None:
    url = receiver.url.replace("http", scheme).replace("127.0.0.1", "localhost")
    done = run(*PYTHON, "-c", IMPORTS, url, SECRET)  # a new interpreter, which has imported nothing yet
    assert (done.stdout, done.stderr) == ("[]\n", "")


@fork_only
def test_fork_pauses_the_webhook_thread_between_steps(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    make_headers = _dispatcher._headers

    def make_slowly(delivery: _deliveries.Delivery, timestamp: int) -> dict[str, str]:
        with lock:
            time.sleep(0.005)
            return make_headers(delivery, timestamp)

    monkeypatch.setattr(_dispatcher, "_headers", make_slowly)
    monkeypatch.setattr(_loop_thread, "PAUSE_SECONDS", float(SECONDS))
    with Sandbox() as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        for _ in range(100):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        assert [in_child(lock.locked) for _ in range(10)] == [False] * 10
        until(lambda: statuses(sandbox) == {"delivered": 100})


@fork_only
@pytest.mark.parametrize("in_memory", [True, False])
def test_forked_child_delivers_from_its_own_thread(receiver: Receiver, tmp_path: Path, in_memory: bool) -> None:
    with Sandbox(None if in_memory else tmp_path / "box.db") as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="parent")
        until(lambda: statuses(sandbox) == {"delivered": 1})

        def work() -> list[str]:
            before = len(webhook_threads())
            sandbox.set_webhook(receiver.url, SECRET)  # in memory the webhook is gone in the child
            message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="child")
            until(lambda: sandbox.deliveries()[0]["status"] == "delivered")
            sandbox.close()
            return [message["id"], str(before), *webhook_threads()]

        child_message, before, *left = in_child(work)
        assert (before, left) == ("0", [])
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="parent again")
        until(lambda: set(statuses(sandbox)) == {"delivered"})
    assert [received.text for received in receiver.received] == ["parent", "child", "parent again"]
    assert receiver.received[1].payload["data"]["messageId"] == child_message


@fork_only
@pytest.mark.parametrize("in_memory", [True, False])
def test_forks_during_deliveries_neither_hang_nor_lose_one(receiver: Receiver, tmp_path: Path, in_memory: bool) -> None:
    done = threading.Event()
    stored: list[str] = []
    with Sandbox(None if in_memory else tmp_path / "box.db") as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)

        def write() -> None:
            while not done.is_set():
                # No faster than deliveries go out, else a child's delivery would wait for all of these.
                until(lambda: len(stored) < len(receiver.received) + 20 or done.is_set())
                stored.append(sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="busy")["id"])

        def work() -> str:
            sandbox.set_webhook(receiver.url, SECRET)
            message_id: str = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="child")["id"]
            until(lambda: (message_id, "delivered") in delivered(sandbox))
            sandbox.close()  # releases its claims on the parent's deliveries
            return message_id

        thread = threading.Thread(target=write)
        thread.start()
        try:
            children = [in_child(work) for _ in range(count(4, 10))]
        finally:
            done.set()
            thread.join(SECONDS)
        until(lambda: set(statuses(sandbox)) == {"delivered"})
    assert set(message_ids(receiver.accepted)) == {*stored, *children}


CHILD_EXITS = """
import os, sys, time, warnings
from agentphone.sandbox import Sandbox
warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads
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
def test_child_exit_leaves_the_parents_attempts_running(receiver: Receiver) -> None:
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
