"""Exports that are killed with `kill -9`, at random moments and at each step on the disk, and resume.

The files are compared, byte for byte, with rows made from the database of the sandbox.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from agentphone.sandbox import Sandbox
from agentphone.sandbox._shapes import id_of
from tests.support.forked import Forked
from tests.support.long import count
from tests.support.processes import SECONDS, sandbox

KILLS = count(10, 50)
"""At random moments, in all of this file."""
RANDOM = random.Random(9)
KILLED = -signal.SIGKILL

EXPORT = """
import json, os, signal, sys
from agentphone import Client
from agentphone.export import _fingerprint, export

order = json.loads(sys.argv[1])
directory, last_step, steps = order["directory"], order["last_step"], 0
_fingerprint.ROUNDS = 1

def watch(event, arguments):
    global steps
    touched = [a for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if touched and os.fsdecode(touched[0]).startswith(directory):
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
with Client("key", base_url=order["url"]) as client:
    export(client, directory, since=order["since"], concurrency=order["concurrency"])
"""
"""Export; with `last_step` it kills itself when it has opened, renamed or removed that many files."""

START = datetime(2025, 6, 30, 12, tzinfo=UTC)
SIZES = [1, 3, 199, 201]
"""The numbers of messages per conversation, around the 200 of a page."""
AGENT = "+15555550100"


@frozen
class Account:
    """A sandbox behind a socket, and its database."""

    url: str
    database: Path

    def receive(self, sizes: list[int], begin: datetime) -> None:
        """Add messages to each conversation; every three of one share a timestamp."""
        with Sandbox(self.database) as box:
            for number, size in enumerate(sizes):
                for index in range(size):
                    person, text = (
                        f"+1555555{number:04}",
                        f"Text {index}: where is it? \u2028\x85 \u00e9\U0001f600\n\"'",
                    )
                    at = begin + timedelta(seconds=index // 3, microseconds=number)
                    if index % 4 == 3:
                        box.send_sms(from_number=AGENT, to_number=person, body=text, at=at)
                    else:
                        box.receive_sms(from_number=person, to_number=AGENT, body=text, at=at)

    def export(self, directory: Path, *, killed_after: float = SECONDS, **options: Any) -> int:
        """Run an export, kill it after so many seconds, and return its exit code, negative for a signal."""
        order = {"since": None, "concurrency": 3, "last_step": None} | options
        with Forked(EXPORT, json.dumps({"url": self.url, "directory": str(directory), **order})) as process:
            try:
                return process.wait(killed_after)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def rows(self, table: str) -> bytes:
        """Return the expected contents of a file, from the database."""
        with closing(sqlite3.connect(self.database)) as connection:
            connection.row_factory = sqlite3.Row
            conversations = connection.execute("SELECT * FROM conversations ORDER BY id").fetchall()
            if table == "conversations":
                return b"".join(map(conversation_line, conversations))
            return b"".join(
                message_line(row, conversation)
                for conversation in conversations
                for row in connection.execute(
                    "SELECT * FROM messages WHERE conversation = ? ORDER BY received_at, id", (conversation["serial"],)
                )
            )


def printed(micros: int) -> str:
    return (datetime(1970, 1, 1) + timedelta(microseconds=micros)).isoformat(timespec="microseconds") + "Z"


def line(row: dict[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\x85", "\\u0085").encode() + b"\n"


def conversation_line(row: sqlite3.Row) -> bytes:
    return line(
        {
            "id": row["id"],
            "agentId": id_of("agt", row["agent_number"]),
            "phoneNumberId": id_of("num", row["agent_number"]),
            "phoneNumber": row["agent_number"],
            "participant": row["participant"],
            "lastMessageAt": printed(row["last_message_at"]),
            "lastMessagePreview": row["preview"],
            "messageCount": row["message_count"],
            "metadata": None,
            "createdAt": printed(row["created_at"]),
            "channel": "sms",
        }
    )


def message_line(row: sqlite3.Row, conversation: sqlite3.Row) -> bytes:
    is_inbound = row["direction"] == "inbound"
    numbers = [conversation["participant"], conversation["agent_number"]]
    return line(
        {
            "conversationId": conversation["id"],
            "id": row["id"],
            "body": row["body"],
            "fromNumber": numbers[0] if is_inbound else numbers[1],
            "toNumber": numbers[1] if is_inbound else numbers[0],
            "direction": row["direction"],
            "receivedAt": printed(row["received_at"]),
            "channel": "sms",
            "mediaUrls": [],
            "status": "received" if is_inbound else "delivered",
        }
    )


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    database = tmp_path_factory.mktemp("account") / "box.db"
    with sandbox("--db", str(database)) as (_, url):
        account = Account(url, database)
        account.receive(SIZES, START)
        yield account


def assert_whole(account: Account, directory: Path) -> None:
    assert {path.name for path in directory.iterdir()} == {
        "conversations.jsonl",
        "messages.jsonl",
        ".last-export.db",
    }
    for table in ("conversations", "messages"):
        assert (directory / f"{table}.jsonl").read_bytes() == account.rows(table), table


def test_kills_at_random_moments(account: Account, tmp_path: Path) -> None:
    began = time.monotonic()
    assert account.export(tmp_path / "whole") == 0
    usual = time.monotonic() - began
    assert_whole(account, tmp_path / "whole")
    kills: list[int] = []
    while sum(kills) < KILLS:
        directory = tmp_path / str(len(kills))
        kills.append(0)
        while True:
            # Longer from time to time: however slow the machine has become since, one run comes to the end.
            moment = RANDOM.uniform(0, usual * (1 + kills[-1] / 4))
            code = account.export(directory, concurrency=RANDOM.choice([1, 3, 8]), killed_after=moment)
            if code != KILLED:
                break
            kills[-1] += 1
        assert code == 0
        assert_whole(account, directory)
    sys.stdout.write(f"kills of each export: {kills}; {usual:.2f} s for one that is left alone\n")


@pytest.mark.parametrize(("since", "step"), [(None, 1), ("last", 2)])
def test_kill_at_each_step_on_the_disk(account: Account, tmp_path: Path, since: str | None, step: int) -> None:
    """At every second step, unless the run is a long one: the two begin at different ones."""
    before = b""
    if since == "last":
        assert account.export(tmp_path / "before") == 0
        before = (tmp_path / "before" / "messages.jsonl").read_bytes()
        account.receive([4, 0, 230], START + timedelta(days=1))
    known = set(before.splitlines())
    new = [row for row in account.rows("messages").splitlines() if row not in known]
    code = KILLED
    while code == KILLED:
        directory = tmp_path / str(step)
        if since == "last":
            shutil.copytree(tmp_path / "before", directory)
        code = account.export(directory, since=since, last_step=step)
        assert account.export(directory, since=since) == 0
        assert (directory / "conversations.jsonl").read_bytes() == account.rows("conversations")
        assert (directory / "messages.jsonl").read_bytes() == before + b"".join(row + b"\n" for row in new)
        assert not (directory / ".partial").exists()
        step += count(2, 1)
    assert code == 0
    assert step > 10  # the database, three parts, three renames, what is removed
    assert len(new) == (234 if since else sum(SIZES))
