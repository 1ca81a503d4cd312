"""An account that changes while it is exported."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from agentphone import (
    NotFoundError,
)
from agentphone.export import Progress, export
from agentphone.sandbox import Sandbox
from tests.support.accounts import (
    AGENT,
    DAY,
    START,
    Watched,
    async_client,
    both,
    fill,
    names,
    rows_of,
)

pytestmark = pytest.mark.anyio


async def test_conversation_deleted_before_reading_is_skipped(box: Sandbox, directory: Path) -> None:
    fill(box, 4, 410)
    gone: list[str] = []

    def remove(number: int, request: httpx.Request) -> None:
        if number == 3:  # in the middle of the first conversation
            conversation_id = request.url.path.split("/")[-2]
            assert box.remove_conversation(conversation_id)
            gone.append(conversation_id)

    async with async_client(Watched(box, remove)) as client:
        seen: list[Progress] = []
        result = await export(client, directory, concurrency=1, on_progress=seen.append)
    assert gone
    assert (result.conversations, result.skipped, result.messages) == (3, 1, 3 * 410)
    assert both(directory) == rows_of(box)
    read = [progress for progress in seen if progress.phase == "reading"][-1]
    assert (read.conversations_done, read.conversations_total, read.messages_done) == (3, 3, 1230)


@pytest.mark.parametrize("is_not_found", ["/messages", "/v1/conversations"])
async def test_404_for_an_existing_conversation_is_an_error(box: Sandbox, directory: Path, is_not_found: str) -> None:
    """For the messages alone, or for everything, once the list was read: then it is no conversation that is gone."""
    fill(box, 2, 1)

    def fail(number: int, request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(404) if number > 1 and is_not_found in request.url.path else None

    async with async_client(Watched(box, fail)) as client:
        with pytest.raises(NotFoundError):
            await export(client, directory)
    assert names(directory) == {".partial"}
    async with async_client(box.transport()) as client:
        await export(client, directory)
    assert both(directory) == rows_of(box)


async def test_changing_account_is_exported_once(box: Sandbox, directory: Path) -> None:
    fill(box, 30, 21)
    before = rows_of(box)

    def move(number: int, _: httpx.Request) -> None:
        for person in (number % 30, 40 + number):
            box.receive_sms(from_number=f"+1555556{person:04}", to_number=AGENT, body="new", at=START + DAY * number)

    async with async_client(Watched(box, move)) as client:
        await export(client, directory)
    conversations, messages = both(directory)
    ids = [row["id"] for row in conversations]
    assert len(set(ids)) == len(ids)
    assert {row["id"] for row in before[0]} <= set(ids)
    keys = [(row["conversationId"], row["receivedAt"], row["id"]) for row in messages]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    old = [row for row in messages if row["body"] != "new"]
    assert old == before[1]
