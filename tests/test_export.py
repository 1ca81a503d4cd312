"""The export: every row once and as the API has it, in each format, with both clients and on both event loops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentphone import AsyncClient, Client
from agentphone.export import Result, export
from agentphone.sandbox import Sandbox

pytestmark = pytest.mark.anyio

AGENT = "+15555550100"
START = datetime(2025, 6, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def person(number: int) -> str:
    return f"+1555556{number:04}"


def fill(box: Sandbox, conversations: int, messages: int) -> None:
    """Let messages come in, several of an instant among them, in all conversations by turns."""
    for index in range(messages):
        for number in range(conversations):
            at = START + timedelta(seconds=index // 3, microseconds=number)
            box.receive_sms(from_number=person(number), to_number=AGENT, body=f"{index} é\n😀,\"'", at=at)


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


def expected(box: Sandbox) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give the rows that a sandbox's conversations and messages should make."""
    conversations: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    store = box._store
    listed = {item["id"]: item for item in store.conversations(limit=10**6, offset=0)["data"]}
    for conversation_id in sorted(listed):
        conversations.append(listed[conversation_id])
        page = store.messages(conversation_id, limit=10**6, before=None, after=None)
        assert page is not None
        own = [{"conversationId": conversation_id, **message} for message in page["data"]]
        messages += sorted(own, key=lambda message: (message["receivedAt"], message["id"]))
    for row in (*conversations, *messages):
        for name in ("receivedAt", "lastMessageAt", "createdAt"):
            if name in row:
                row[name] = row[name].replace(".000000", "")
    return conversations, messages


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_each_conversation_and_message_is_a_line_under_the_names_of_the_api(box: Sandbox, tmp_path: Path) -> None:
    fill(box, 5, 450)
    async with AsyncClient("key", transport=box.transport()) as client:
        result = await export(client, tmp_path / "out")
    conversations, messages = expected(box)
    assert result == Result(
        conversations=5,
        messages=2250,
        left_out=0,
        conversations_path=tmp_path / "out" / "conversations.jsonl",
        messages_path=tmp_path / "out" / "messages.jsonl",
    )
    assert lines(result.conversations_path) == conversations
    assert lines(result.messages_path) == messages
    assert not (tmp_path / "out" / ".partial").exists()


def test_the_blocking_client_exports_the_same(box: Sandbox, tmp_path: Path) -> None:
    fill(box, 3, 10)
    with Client("key", transport=box.transport()) as client:
        result = export(client, str(tmp_path))
    assert (lines(result.conversations_path), lines(result.messages_path)) == expected(box)
