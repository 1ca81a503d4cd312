"""`follow` and `watch` while responses lack conversations or messages: nothing is lost, nothing old becomes new."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx
import pytest

from agentphone import AsyncClient
from agentphone.sandbox import Sandbox
from tests.live.support import (
    OTHER,
    Phone,
    bodies,
    client_for,
    faulty_client,
    fill,
    newest_of,
    no_conversations,
    not_found,
    nth_list,
)
from tests.support.backends import ON_ASYNCIO
from tests.support.helpers import page

pytestmark = pytest.mark.anyio


async def test_conversation_deleted_while_watched_is_skipped() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        start = phone.now
        gone = phone.text("gone")
        phone.text("there", OTHER)
        sandbox.faults.add(status=404, path=f"/v1/conversations/{gone}/messages")
        async with client_for(sandbox) as client:
            stream = client.conversations.watch(after=start)
            assert (await anext(stream)).message.body == "there"


@ON_ASYNCIO
@pytest.mark.parametrize("start", ["now", "message", "timestamp"])
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2, 3), (2, 4, 5)])
async def test_empty_list_for_a_moment_makes_no_old_message_new(start: str, numbers: tuple[int]) -> None:
    with Sandbox() as sandbox:
        phone = fill(sandbox)
        after: Any = {"now": None, "timestamp": phone.now, "message": await newest_of(sandbox)}[start]
        now = phone.now + timedelta(seconds=100)
        async with faulty_client(sandbox, nth_list(no_conversations, *numbers), date=now) as client:
            stream = client.conversations.watch(after=after)
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None
            phone.text("new", wait=100)
            phone.text("newer", "+15555559999")
            assert [(await anext(stream)).message.body for _ in range(2)] == ["new", "newer"]


@pytest.mark.parametrize("date", [datetime(2025, 7, 1, tzinfo=UTC), None])
async def test_after_an_empty_first_list_the_date_header_decides_what_is_new(date: datetime | None) -> None:
    """The local clock is not used, though it is far ahead of these messages: they may be the account's first."""
    with Sandbox() as sandbox:
        Phone(sandbox).text("old")
        async with faulty_client(sandbox, nth_list(no_conversations, 1), date=date) as client:
            received: list[str | None] = []
            with anyio.move_on_after(300):
                async for _, message in client.conversations.watch():
                    received.append(message.body)
            assert received == ([] if date else ["old"])


async def test_empty_first_page_with_has_more_makes_no_old_message_new() -> None:
    def empty_with_has_more(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=page(total=60, has_more=True))

    with Sandbox() as sandbox:
        phone = fill(sandbox)
        fault = nth_list(empty_with_has_more, 1, 2)
        async with faulty_client(sandbox, fault) as client, anyio.create_task_group() as group:
            received: list[str | None] = []

            async def read() -> None:
                received.append((await anext(client.conversations.watch())).message.body)

            group.start_soon(read)
            await anyio.sleep(100)
            assert len(sandbox.requests) < 50
            phone.text("new", wait=100)
        assert received == ["new"]


@pytest.mark.parametrize("status", [404, 200])
async def test_messages_missing_for_one_poll_are_returned_once(status: int) -> None:
    """All conversations at once, as when the API is deployed."""
    with Sandbox() as sandbox:
        phone = fill(sandbox)
        left = 0

        def fault(request: httpx.Request) -> httpx.Response | None:
            nonlocal left
            if left == 0 or not request.url.path.endswith("/messages"):
                return None
            left -= 1
            return not_found(request) if status == 404 else httpx.Response(200, json=page())

        async with faulty_client(sandbox, fault) as client:
            stream = client.conversations.watch(after=phone.now)
            with anyio.move_on_after(1000):  # so that the watermark rises
                await anext(stream)
            bodies = [str(number) for number in range(40)]
            for body in bodies:
                phone.text(body, f"+1555555{int(body) % 30:04}")
            left = 30
            received = [(await anext(stream)).message.body for _ in bodies]
            assert sorted(str(body) for body in received) == sorted(bodies)
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None


async def test_page_not_found_in_the_middle_loses_no_message() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        start = phone.now
        for number in range(500):
            phone.text(str(number))
        seen: list[str] = []

        def fault(request: httpx.Request) -> httpx.Response | None:
            seen.append(request.url.path)
            return not_found(request) if len(seen) == 3 else None  # the second page of its messages

        async with faulty_client(sandbox, fault) as client:
            stream = client.conversations.watch(after=start)
            received = {(await anext(stream)).message.body for _ in range(500)}
        assert received == {str(number) for number in range(500)}


@pytest.mark.parametrize("start", ["now", "message", "timestamp"])
async def test_follow_of_momentarily_empty_messages_makes_no_old_one_new(start: str) -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        for _ in range(300):
            conversation = phone.text("old", wait=100)
        after: Any = {"now": None, "timestamp": phone.now, "message": await newest_of(sandbox)}[start]
        count = 0

        def fault(_: httpx.Request) -> httpx.Response | None:
            nonlocal count
            count += 1
            return httpx.Response(200, json=page()) if count in (1, 3) else None

        now = phone.now + timedelta(seconds=100)
        async with faulty_client(sandbox, fault, date=now) as client:
            stream = client.conversations.follow(conversation, after=after)
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None
            phone.text("new", wait=100)
            assert await bodies(stream, 1) == ["new"]


@pytest.mark.parametrize("kind", ["not found", "empty"])
async def test_message_that_the_list_shows_first_is_returned_when_it_appears(kind: str) -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        start = phone.now
        new = phone.text("new")
        status, body = (404, None) if kind == "not found" else (200, '{"data":[],"hasMore":false}')
        sandbox.faults.add(status=status, body=body, path=f"/v1/conversations/{new}/messages", times=2)
        async with client_for(sandbox) as client:
            stream = client.conversations.watch(after=start)
            assert (await anext(stream)).message.body == "new"
            gone = phone.text("gone")
            sandbox.faults.add(status=404, path=f"/v1/conversations/{gone}/messages", times=10**6)
            with anyio.move_on_after(300):
                await anext(stream)
            sandbox.requests.clear()
            with anyio.move_on_after(600):
                await anext(stream)
            assert len(sandbox.requests) < 20, "a conversation that shows nothing is given up"


def fill_at_once(sandbox: Sandbox, people: int) -> Phone:
    """Fill an account with a message of each of so many people, all within the overlap."""
    phone = Phone(sandbox)
    for number in range(people):
        phone.text("old", f"+1555555{number:04}", wait=0.1)
    return phone


async def received_in(client: AsyncClient, seconds: float) -> list[str | None]:
    """Return the texts that `watch` yields in that time."""
    received: list[str | None] = []
    with anyio.move_on_after(seconds):
        async for _, message in client.conversations.watch():
            received.append(message.body)
    return received


@pytest.mark.parametrize("has_date", [True, False])
async def test_truncated_first_poll_makes_no_old_message_new(has_date: bool) -> None:
    """Its second page is empty. Reading the front again shows 100; the next poll shows the others."""

    def empty(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=page(total=None))

    with Sandbox() as sandbox:
        phone = fill_at_once(sandbox, 150)
        date = phone.now if has_date else None
        async with faulty_client(sandbox, nth_list(empty, 2), date=date) as client:
            assert await received_in(client, 300) == []


@pytest.mark.parametrize("has_date", [True, False])
async def test_empty_front_at_the_end_of_the_first_poll_makes_no_old_message_new(has_date: bool) -> None:
    """A conversation moves to the front while the list is read, and the front is empty when it is read again."""
    with Sandbox() as sandbox:
        phone = fill_at_once(sandbox, 60)
        offsets: list[int] = []

        def fault(request: httpx.Request) -> httpx.Response | None:
            if request.url.path != "/v1/conversations":
                return None
            offsets.append(int(request.url.params["offset"]))
            if len(offsets) == 2:
                phone.text("new", "+15555550000")
            return no_conversations(request) if offsets[1:].count(0) == 1 and offsets[-1] == 0 else None

        async with faulty_client(sandbox, fault, date=phone.now if has_date else None) as client:
            assert await received_in(client, 300) == ["new"]
        assert offsets[1] > 0
