"""What the tests of the inbox share: a sandbox that sends to an inbox, workers in processes, and a real PostgreSQL."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from attrs import define, field

from agentphone import Client
from agentphone.inbox import Inbox
from agentphone.inbox._listing import list_items
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running

SECRET = "whsec_of_the_tests"
AGENT = "+15555550100"
SECONDS = 60
"""For what takes a few: a limit that turns a hang into a failure, not a measure."""


def until(condition: Callable[[], object], *, seconds: float = SECONDS) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)


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
    forking: subprocess.Popen[str]
    box: Sandbox
    inbox: Inbox
    api: str
    environment: dict[str, str] = field(factory=dict)
    workers: dict[str, int] = field(factory=dict)
    """The process ids by name."""

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, database: str, forking: subprocess.Popen[str], *, faults: bool = False
    ) -> Iterator[World]:
        with ExitStack() as stack:
            box = stack.enter_context(Sandbox(retry_scale=0.05))
            if faults:
                box.app = FaultyAPI(box)  # type: ignore[assignment]
            api = stack.enter_context(running(box))
            inbox = Inbox(webhook_secret=SECRET, database=database)
            stack.callback(inbox._database.close)
            url = stack.enter_context(serving(inbox.asgi))
            box.set_webhook(url, SECRET)
            world = cls(folder, database, forking, box, inbox, api)
            stack.callback(world.kill_all)
            yield world

    def start(self, name: str) -> None:
        """Start a worker, also again after it was killed."""
        environment = {
            "FOLDER": str(self.folder),
            "AGENTPHONE_API_KEY": "any-key",
            "AGENTPHONE_BASE_URL": self.api,
            "AGENTPHONE_INBOX_DATABASE": self.database,
            **self.environment,
        }
        assert self.forking.stdin is not None
        assert self.forking.stdout is not None
        order = {"name": name, "environment": environment, "folder": str(self.folder)}
        self.forking.stdin.write(json.dumps(order) + "\n")
        self.forking.stdin.flush()
        self.workers[name] = int(self.forking.stdout.readline())

    def kill(self, name: str) -> None:
        pid = self.workers[name]
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
            until(lambda: not is_alive(pid))
        with (self.folder / "record.jsonl").open("a") as file:
            file.write(json.dumps({"event": "killed", "pid": pid}) + "\n")

    def kill_all(self) -> None:
        for name in self.workers:
            self.kill(name)

    def restart_dead(self) -> None:
        """Start the workers again that have died."""
        for name, pid in self.workers.items():
            if not is_alive(pid):
                log = self.folder / f"{name}.log"
                assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()
                self.start(name)

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "record.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [record for record in records if event in (None, record["event"])]

    def items(self, *statuses: str) -> list[dict[str, Any]]:
        return list_items(self.inbox._database, statuses=statuses)

    def send_texts(self, texts: int, people: int) -> None:
        for number in range(texts):
            self.box.receive_sms(from_number=person(number % people), to_number=AGENT, body=f"text {number}")

    def finish(self, texts: int, *, between: Callable[[], None] = lambda: None, seconds: float = SECONDS) -> None:
        """Keep the workers alive until every text has come to an end."""
        end = time.monotonic() + seconds
        while len(self.items("done", "failed", "unconfirmed")) < texts:
            assert time.monotonic() < end, Counter(item["status"] for item in self.items())
            self.restart_dead()
            between()
            time.sleep(0.05)

    def check(self, texts: int, people: int, *, unconfirmed: int = 0) -> None:
        """Check that every text was handled and answered once, and no two of a conversation at the same time."""
        statuses = Counter(item["status"] for item in self.items())
        assert sum(statuses.values()) == texts
        assert set(statuses) <= {"done", "unconfirmed"}, self.items("failed", "pending", "running")[:3]
        assert statuses["unconfirmed"] <= unconfirmed, self.items("unconfirmed")
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


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
