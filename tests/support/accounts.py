"""Accounts to export: fill a sandbox, and the rows that its export must have."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from agentphone import (
    AsyncClient,
)
from agentphone.export import Progress
from agentphone.sandbox import Sandbox

AGENT = "+15555550100"
START = datetime(2025, 6, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)
FORMATS = ["jsonl", "csv", "parquet"]


def fill(box: Sandbox, conversations: int, messages: int, at: datetime = START) -> None:
    """Add messages to all conversations in turn; every three of one share a timestamp."""
    for index in range(messages):
        for number in range(conversations):
            moment = at + timedelta(seconds=index // 3, microseconds=number)
            body = f"{index} \u00e9\n\U0001f600,\"'\u2028"
            box.receive_sms(from_number=f"+1555556{number:04}", to_number=AGENT, body=body, at=moment)


def rows_of(box: Sandbox, after: datetime | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows that a sandbox's conversations and messages must have, later than `after`."""
    conversations = box._store.conversations(limit=10**6, offset=0)["data"]
    conversations.sort(key=lambda row: row["id"])
    messages: list[dict[str, Any]] = []
    for row in conversations:
        found = box._store.messages(row["id"], limit=10**6, before=None, after=None)
        assert found is not None
        own = [{"conversationId": row["id"], **message} for message in found["data"]]
        messages += sorted(own, key=lambda message: (message["receivedAt"], message["id"]))
    for row in (*conversations, *messages):
        for name in {"receivedAt", "lastMessageAt", "createdAt"} & row.keys():
            row[name] = datetime.fromisoformat(row[name]).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if after is None:
        return conversations, messages
    return (
        [row for row in conversations if datetime.fromisoformat(row["lastMessageAt"]) > after],
        [row for row in messages if datetime.fromisoformat(row["receivedAt"]) > after],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def both(directory: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return lines(directory / "conversations.jsonl"), lines(directory / "messages.jsonl")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


class Watched(httpx.AsyncBaseTransport):
    """A transport to a sandbox that records requests, and responds itself where `step` returns a response."""

    def __init__(
        self, box: Sandbox, step: Callable[[int, httpx.Request], httpx.Response | None] = lambda *_: None
    ) -> None:
        self._inner = box.transport()
        self._step = step
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.raw_path.decode())
        answer = self._step(len(self.asked), request)
        return await self._inner.handle_async_request(request) if answer is None else answer


def async_client(transport: httpx.AsyncBaseTransport, key: str = "key", **options: Any) -> AsyncClient:
    return AsyncClient(key, transport=transport, max_retries=0, **options)


def failing_in(phase: str) -> Callable[[Progress], object]:
    return lambda progress: 1 // (progress.phase != phase)


def altered(path: Path, *statements: str) -> None:
    """Change a database."""
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


class At:
    """A progress hook that calls something at its so manieth call."""

    def __init__(self, number: int, call: Callable[[], object]) -> None:
        self._left, self._call = number, call

    def __call__(self, progress: Progress) -> None:
        self._left -= 1
        if self._left == 0:
            self._call()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))
