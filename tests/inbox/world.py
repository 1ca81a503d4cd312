"""What the tests of the inbox share: a sandbox that sends to an inbox, workers in processes, and a real PostgreSQL."""

from __future__ import annotations

import json
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
from attrs import define, field

from agentphone import Client
from agentphone.inbox import Inbox
from agentphone.inbox._database import Database
from agentphone.inbox._listing import list_items
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.inbox import killed_worker, processes
from tests.support.processes import SECONDS

SECRET = "whsec_of_the_tests"
AGENT = "+15555550100"


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)


@cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inbox.db"
        database = Database(f"sqlite:///{path}", "inbox")
        database.get("start")
        database.close()
        return path.read_bytes()


def create_sqlite(folder: Path) -> str:
    """Create an empty database, unless there is one, and return its URL. A copy takes less time than the first use."""
    path = folder / "inbox.db"
    if not path.exists():
        path.write_bytes(_empty_database())
    return f"sqlite:///{path}"


def person(number: int) -> str:
    return f"+1555555{2000 + number}"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application from a thread, on a free port, and yield its URL."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(SECONDS)


@contextmanager
def working(inbox: Inbox, **options: Any) -> Iterator[None]:
    """Run an inbox in a thread, and stop it in order; an exception of it is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            inbox.run(**options) if options else inbox.work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: inbox._stop or errors)
    try:
        yield
    finally:
        inbox.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()
    for error in errors:
        raise error


class FaultyAPI:
    """The sandbox's application with faults: 10 % of the calls, and the answer of every fifth reply is lost.

    A reply that fails is a 429, which says that it was not sent; a 5xx would leave that open.
    """

    def __init__(self, box: Sandbox) -> None:
        self._box, self._app, self._replies = box, box.app, 0
        self._random = random.Random(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_reply = scope["method"] == "POST" and scope["path"] == "/v1/messages"
        self._replies += is_reply
        where = {"path": scope["path"], "method": scope["method"]}
        if is_reply and self._replies % 5 == 0:
            self._box.faults.add(kind="lost", **where)
        elif self._random.random() < 0.1:
            fault: dict[str, Any] = {"status": 429, "retry_after": 0} if is_reply else {"status": 503}
            self._box.faults.add(**fault, **where)
        await self._app(scope, receive, send)


@define
class World:
    """A sandbox whose texts an inbox of this process receives, and workers in processes of their own."""

    folder: Path
    database: str
    box: Sandbox
    inbox: Inbox
    api: str
    confirm: float
    """Seconds for which a worker looks for a reply; it looks at least once."""
    workers: dict[str, BaseProcess] = field(factory=dict)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, database: str, *, faults: bool = False) -> Iterator[World]:
        with ExitStack() as stack:
            box = stack.enter_context(Sandbox(retry_scale=0.05))
            if faults:
                box.app = FaultyAPI(box)  # type: ignore[assignment]
            api = stack.enter_context(running(box))
            inbox = Inbox(webhook_secret=SECRET, database=database)
            stack.callback(inbox._database.close)
            url = stack.enter_context(serving(inbox.asgi))
            box.set_webhook(url, SECRET)
            # With faults the look itself may fail. Without, the whole time passes after a death right before the reply.
            world = cls(folder, database, box, inbox, api, confirm=10 if faults else 0.2)
            stack.callback(world.kill_all)
            yield world

    def start(self, name: str) -> None:
        """Start a worker, also again after it was killed."""
        arguments = (self.folder, self.api, self.database, name, self.confirm)
        self.workers[name] = processes.start(killed_worker.work, *arguments, log=self.folder / f"{name}.log")

    def kill(self, name: str) -> None:
        worker = self.workers[name]
        worker.kill()  # nothing, if it has died
        worker.join(SECONDS)
        with (self.folder / "record.jsonl").open("a") as file:
            file.write(json.dumps({"event": "killed", "pid": worker.pid}) + "\n")

    def restart(self, name: str) -> None:
        """Kill a worker, and start it again."""
        self.kill(name)
        self.start(name)

    def kill_all(self) -> None:
        for name in self.workers:
            self.kill(name)

    def restart_dead(self) -> None:
        """Start the workers again that have died."""
        for name, worker in self.workers.items():
            if not worker.is_alive():
                assert worker.exitcode == -signal.SIGKILL, (self.folder / f"{name}.log").read_text()
                self.start(name)

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "record.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [record for record in records if event in (None, record["event"])]

    def items(self, *statuses: str) -> list[dict[str, Any]]:
        return list_items(self.inbox._database, statuses=statuses)

    def send_texts(self, texts: Iterable[str], *, people: int) -> None:
        for number, text in enumerate(texts):
            self.box.receive_sms(from_number=person(number % people), to_number=AGENT, body=text)

    def wait_for_calls(self, count: int) -> None:
        """Wait until a handler has been called so often."""
        until(lambda: len(self.records("start")) >= count)

    def finish(self, texts: int) -> None:
        """Keep the workers alive until every text has come to an end. pytest's own timeout ends a hang."""
        while len(self.items("done", "failed", "unconfirmed")) < texts:
            self.restart_dead()
            time.sleep(0.05)

    def check(self, texts: int, *, unconfirmed: int = 0) -> None:
        """Check that every text was handled and answered once, and no two of a conversation at the same time."""
        statuses = Counter(item["status"] for item in self.items())
        assert sum(statuses.values()) == texts
        assert set(statuses) <= {"done", "unconfirmed"}, self.items("failed", "pending", "running")[:3]
        assert statuses["unconfirmed"] <= unconfirmed, self.items("unconfirmed")
        assert all("was about to send" in item["error"] for item in self.items("unconfirmed")), "a kill is the reason"
        open_replies = {item["reply"] for item in self.items("unconfirmed")}
        with Client("any-key", base_url=self.api) as client:
            for conversation in client.conversations.list():
                messages = list(client.conversations.messages(conversation.id, order="asc"))
                received = [message.body for message in messages if message.direction == "inbound"]
                sent = [message.body for message in messages if message.direction == "outbound"]
                metadata = client.conversations.get(conversation.id, message_limit=1).metadata
                assert metadata == {"texts": len(received)}
                numbers = {f"{text} is number" for text in received}
                assert len(sent) == len(set(sent)), "a reply was sent twice"
                assert {str(body).rpartition(" ")[0] for body in [*sent, *self._of(received, open_replies)]} == numbers
        self.check_one_at_a_time()

    def _of(self, received: list[str | None], replies: set[str]) -> list[str]:
        return [reply for reply in replies if reply.rpartition(" is number")[0] in received]

    def check_one_at_a_time(self) -> None:
        """Check the record: a conversation's handler is called only after its last call has ended, or was killed."""
        calls: dict[str, dict[str, Any]] = {}
        for record in self.records():
            if record["event"] in ("death", "killed"):
                calls = {name: call for name, call in calls.items() if call["pid"] != record["pid"]}
            elif record["event"] == "start":
                assert record["conversation"] not in calls, (calls[record["conversation"]], record)
                calls[record["conversation"]] = record
            else:
                calls.pop(record["conversation"])
