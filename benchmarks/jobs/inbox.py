"""The inbox: store texts, and answer them. The database is SQLite in the current folder.

The inbox is built on DBOS. The peers that use DBOS alone have the inbox's settings of SQLite, so that all sync to the
disk equally often.
"""

from __future__ import annotations

import json
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from .turns import Turn
from .webhook import SECRET, Headers, make_delivery, parse_by_hand

FILE = Path("texts.db").absolute()
QUEUE, WORKFLOW = "texts", "answer"
POLL_SECONDS = 0.05
"""How often a worker looks for new texts; the inbox's is the same."""
LONGEST_WAIT = 60
"""Seconds after which an answer is missing."""


class Engine(NamedTuple):
    """What stores texts and answers them."""

    store: Callable[[bytes, Headers], object]
    start: Callable[[], object]
    """Starts the worker."""


def receive(library: str, url: str, size: int) -> Turn:
    """Verify and store deliveries of texts, one after another, without a worker."""
    store = sqlite_store() if library == "sqlite" else _engine(library, url, lambda: None).store
    numbers = count()

    def turn(units: int) -> float:
        deliveries = [make_delivery(next(numbers), size) for _ in range(units)]
        began = time.perf_counter()
        for body, headers in deliveries:
            store(body, headers)
        return (time.perf_counter() - began) / units

    return turn


def work(library: str, url: str, size: int) -> Turn:
    """Answer texts of `size` conversations that are stored already, one at a time in each.

    The time runs from the first answer to the last, without the start of the worker. The CPU time is that of the whole
    turn.
    """
    finished: queue.SimpleQueue[float] = queue.SimpleQueue()
    engine = _engine(library, url, lambda: finished.put(time.perf_counter()))

    def turn(units: int) -> float:
        for number in range(units):
            engine.store(*make_delivery(number, size))
        engine.start()
        times = [finished.get(timeout=LONGEST_WAIT) for _ in range(units)]
        return (times[-1] - times[0]) / (units - 1)

    return turn


def answer(library: str, url: str, size: int) -> Turn:
    """Receive a text and answer it, one at a time, with a worker that is running."""
    finished: queue.SimpleQueue[float] = queue.SimpleQueue()
    engine = _engine(library, url, lambda: finished.put(time.perf_counter()))
    engine.start()
    numbers = count()

    def answer_one() -> float:
        delivery = make_delivery(next(numbers), size)
        time.sleep(random.uniform(0, POLL_SECONDS))  # it may arrive at any moment between two looks of the worker
        began = time.perf_counter()
        engine.store(*delivery)
        return finished.get(timeout=LONGEST_WAIT) - began

    def turn(units: int) -> float:
        answer_one()  # the worker starts meanwhile
        return sum(answer_one() for _ in range(units)) / units

    return turn


def _engine(library: str, url: str, finish: Callable[[], object]) -> Engine:
    """Return the engine of a library, which calls `finish` after each answer."""
    if library == "ours":
        return inbox(url, finish)
    return dbos(url, finish, sends=library == "dbos+httpx")


def inbox(url: str, finish: Callable[[], object]) -> Engine:
    """Return this SDK's inbox, whose handler replies with a text."""
    from agentphone import AsyncClient
    from agentphone.inbox import Inbox
    from agentphone.webhooks import MessageEvent

    client = AsyncClient("key", base_url=url, on_response=lambda _: finish())  # it sends nothing but replies
    box = Inbox(client, webhook_secret=SECRET, database=f"sqlite:///{FILE}")

    @box.on_message
    async def reply(text: MessageEvent) -> str:
        return f"re: {text.text}"

    def store(body: bytes, headers: Headers) -> None:
        assert box.receive(body, headers) == 202

    return Engine(store, threading.Thread(target=box.work, daemon=True).start)


def dbos(url: str, finish: Callable[[], object], *, sends: bool) -> Engine:
    """Return DBOS alone: a workflow for each text, which is empty, or has one step that sends a reply with httpx."""
    import httpx
    from dbos import DBOS, DBOSClient, EnqueueOptions

    from agentphone.inbox._engine import configuring_all_connections, create_engine  # the settings of SQLite

    database = f"sqlite:///{FILE}"
    with configuring_all_connections():
        DBOS.migrate(database)
    engine = create_engine(database)
    enqueuer = DBOSClient(system_database_engine=engine)
    # As the inbox has it: one text of a conversation at a time, and more at once than there are conversations.
    enqueuer.register_queue(QUEUE, partition_concurrency=1, worker_concurrency=80, polling_interval_sec=POLL_SECONDS)
    sender = httpx.Client(headers={"Authorization": "Bearer key"}, timeout=30)

    @DBOS.step()
    def send(message: dict[str, str]) -> str:
        sent: str = sender.post(f"{url}/v1/messages", json=message).raise_for_status().json()["id"]
        return sent

    @DBOS.workflow(name=WORKFLOW)
    def answer_one(text: dict[str, Any]) -> None:
        if sends:
            data = text["data"]
            reply = f"re: {data['message']}"
            send({"number_id": data["numberId"], "to_number": data["from"], "body": reply})
        finish()

    def store(body: bytes, _: Headers) -> None:
        text = json.loads(body)
        options: EnqueueOptions = {
            "queue_name": QUEUE,
            "workflow_name": WORKFLOW,
            "workflow_id": text["data"]["messageId"],
            "queue_partition_key": text["data"]["conversationId"],
        }
        enqueuer.enqueue(options, text)

    def start() -> None:
        DBOS(
            config={
                "name": "benchmark",
                "system_database_engine": engine,
                "system_database_url": database,
                "log_level": "WARNING",
            }
        )
        DBOS.launch()

    return Engine(store, start)


def sqlite_store() -> Callable[[bytes, Headers], object]:
    """Return what one would write without an inbox: verify, and insert the payload in a transaction of its own."""
    connection = sqlite3.connect(FILE)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, conversation TEXT, payload TEXT)")

    def store(body: bytes, headers: Headers) -> None:
        data = parse_by_hand(body, headers)["data"]
        row = (data["messageId"], data["conversationId"], body.decode())
        with connection:
            connection.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", row)

    return store
