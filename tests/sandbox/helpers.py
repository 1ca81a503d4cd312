"""Helpers of the sandbox tests: calls through its transport, its deliveries, file and threads, forked children."""

import asyncio
import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone.sandbox import Sandbox

AGENT, ADA, BEN = "+15555550100", "+15555550110", "+15555550111"
HEADERS = {"Authorization": "Bearer any"}

fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def call(sandbox: Sandbox, method: str, path: str, body: object = None) -> httpx.Response:
    """Send a request through the sandbox's transport, on an event loop of its own."""

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=sandbox.transport(), base_url="http://s", headers=HEADERS) as client:
            return await client.request(method, path, content=None if body is None else json.dumps(body))

    return asyncio.run(send())


def get(sandbox: Sandbox, path: str) -> Any:
    """Return the JSON of a GET."""
    return call(sandbox, "GET", path).json()


def statuses(sandbox: Sandbox) -> Counter[str]:
    """Count the webhook deliveries by status."""
    return Counter(delivery["status"] for delivery in sandbox.deliveries(1000))


def webhook_threads() -> list[str]:
    """Return the names of the running webhook threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("agentphone webhooks")]


def stored_ids(path: Path) -> set[str]:
    """Read all message ids with plain SQLite, and check the integrity of the file."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts = "SELECT count(*) FROM messages WHERE conversation = serial"
        wrong = connection.execute(f"SELECT * FROM conversations WHERE message_count != ({counts})").fetchall()
        assert wrong == []
        return {row[0] for row in connection.execute("SELECT id FROM messages")}
    finally:
        connection.close()


def in_child(work: Callable[[], object]) -> Any:
    """Run `work` in a forked child and return its result; an alarm kills a child that hangs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(120)
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as result:
        text = result.read()
    os.waitpid(pid, 0)
    return json.loads(text)
