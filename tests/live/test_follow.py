"""`follow` and `watch` through the clients: which messages they return, and how many requests they send."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from agentphone import NewMessage
from agentphone.sandbox import Sandbox
from tests.live.support import (
    OTHER,
    Phone,
    bodies,
    client_for,
    faulty_client,
    wait_for_requests,
)
from tests.support.backends import ON_ASYNCIO
from tests.support.helpers import client_of, conversation, message, ok, page

pytestmark = pytest.mark.anyio


async def test_follow_returns_what_arrives_after_its_first_step(sandbox: Sandbox) -> None:
    phone = Phone(sandbox)
    conversation = phone.text("before")
    async with client_for(sandbox) as client, anyio.create_task_group() as group:
        stream = client.conversations.follow(conversation)
        phone.text("before the first step")
        received: list[str | None] = []

        async def read() -> None:
            received.extend(await bodies(stream, 3))

        group.start_soon(read)
        await wait_for_requests(sandbox)
        for body in ("one", "two", "three"):
            phone.text(body)
    assert received == ["one", "two", "three"]


async def test_follow_starts_after_a_message_or_a_timestamp(sandbox: Sandbox) -> None:
    phone = Phone(sandbox)
    for number in range(500):
        conversation = phone.text(str(number))
    async with client_for(sandbox) as client:
        history = [item async for item in client.conversations.messages(conversation, order="asc")]
        resumed = client.conversations.follow(conversation, after=history[99])
        assert await bodies(resumed, 400) == [str(number) for number in range(100, 500)]
        phone.text("new")
        assert await bodies(resumed, 1) == ["new"]
        later = client.conversations.follow(conversation, after=history[497].received_at)
        assert await bodies(later, 2) == ["498", "499"] if sandbox.behavior.timestamp_digits else ["499", "new"]


async def test_late_messages_are_returned_once_up_to_the_overlap(sandbox: Sandbox) -> None:
    phone = Phone(sandbox)
    conversation = phone.text("first")
    async with client_for(sandbox) as client:
        start = await client.conversations.messages(conversation).page()
        stream = client.conversations.follow(conversation, after=start[0], overlap=30)
        watch = client.conversations.watch(after=start[0], overlap=30)
        phone.text("second", wait=100)
        assert await bodies(stream, 1) == ["second"]
        assert (await anext(watch)).message.body == "second"
        phone.text("late", late=30.0, wait=0)
        phone.text("late elsewhere", OTHER, late=30.0, wait=0)
        phone.text("third")
        assert await bodies(stream, 2) == ["late", "third"]
        assert [(await anext(watch)).message.body for _ in range(3)] in (
            ["late", "late elsewhere", "third"],
            ["late elsewhere", "late", "third"],
        )


async def test_watch_returns_pairs_of_all_conversations_in_order(sandbox: Sandbox) -> None:
    phone = Phone(sandbox)
    phone.text("old")
    async with client_for(sandbox) as client:
        stream = client.conversations.watch(after=phone.now)
        for number in range(60):
            phone.text(str(number), f"+1555555{number % 30:04}")
        seen: list[str | None] = []
        async for conversation, message in stream:
            assert message.from_number == conversation.participant
            seen.append(message.body)
            if len(seen) == 60:
                break
        assert seen == [str(number) for number in range(60)]
        phone.text("new", "+15555559999")
        new = await anext(stream)
        assert isinstance(new, NewMessage)
        assert (new.message.body, new.conversation.participant) == ("new", "+15555559999")


async def test_watch_without_after_omits_old_messages(sandbox: Sandbox) -> None:
    phone = Phone(sandbox)
    for number in range(30):
        phone.text("old", f"+1555555{number:04}")
    async with client_for(sandbox) as client, anyio.create_task_group() as group:
        received: list[str | None] = []

        async def read() -> None:
            async for _, item in client.conversations.watch():
                received.append(item.body)
                if len(received) == 2:
                    break

        group.start_soon(read)
        await wait_for_requests(sandbox)
        phone.text("new", "+15555550005")
        phone.text("newer", "+15555559999")
    assert received == ["new", "newer"]


async def test_watch_of_an_empty_account() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        async with client_for(sandbox) as client, anyio.create_task_group() as group:
            received: list[str | None] = []

            async def read() -> None:
                received.append((await anext(client.conversations.watch())).message.body)

            group.start_soon(read)
            await wait_for_requests(sandbox)
            phone.text("the very first")
        assert received == ["the very first"]


async def test_first_message_of_a_new_account_is_new_by_the_servers_clock() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        async with (
            faulty_client(sandbox, lambda _: None, date=phone.now) as client,
            anyio.create_task_group() as group,
        ):
            received: list[str | None] = []

            async def read() -> None:
                received.append((await anext(client.conversations.watch())).message.body)

            group.start_soon(read)
            await wait_for_requests(sandbox)
            phone.text("the very first", late=20)
        assert received == ["the very first"]


async def test_messages_dated_in_the_future_hide_no_others() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        for number in range(30):
            phone.text("future", f"+1555556{number:04}", late=-7200)
        async with faulty_client(sandbox, lambda _: None, date=phone.now) as client:
            stream = client.conversations.watch()
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None
            phone.text("one", "+15555559990")
            assert (await anext(stream)).message.body == "one"
            phone.text("late", "+15555559991", late=20)
            phone.text("two", "+15555559990")
            assert {(await anext(stream)).message.body for _ in range(2)} == {"late", "two"}


async def test_conversations_without_messages_hide_no_others() -> None:
    shown = [f"conv_{number}" for number in range(60)]
    empty = [conversation(id="conv_empty") | {"lastMessageAt": None, "messageCount": 0}]

    async def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/messages"):
            name = request.url.path.split("/")[3]
            return httpx.Response(200, json=page(message(id=f"msg_{name}", receivedAt="2025-06-30T12:00:05Z")))
        limit, offset = int(request.url.params["limit"]), int(request.url.params["offset"])
        conversations = empty + [conversation(id=name) | {"lastMessageAt": "2025-06-30T12:00:05Z"} for name in shown]
        found = conversations[offset : offset + limit]
        return httpx.Response(
            200, json={"data": found, "hasMore": offset + limit < len(conversations), "total": len(conversations)}
        )

    client, _ = client_of(respond)
    async with client:
        stream = client.conversations.watch(after="2025-06-30T12:00:00Z")
        assert {(await anext(stream)).conversation.id for _ in shown} == set(shown)


@ON_ASYNCIO
@pytest.mark.parametrize(("is_watch", "max_idle", "max_busy"), [(False, 160, 400), (True, 85, 320)])
async def test_number_of_requests_while_idle_and_while_busy(is_watch: bool, max_idle: int, max_busy: int) -> None:
    """An idle hour, then ten busy minutes."""
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(sandbox) as client:
            stream: Any = client.conversations.watch() if is_watch else client.conversations.follow(conversation)
            with anyio.move_on_after(3600):
                await anext(stream)
            assert 50 < len(sandbox.requests) <= max_idle

            sandbox.requests.clear()
            with anyio.move_on_after(600):
                while True:
                    phone.text("new")
                    await anext(stream)
            assert 100 < len(sandbox.requests) <= max_busy


async def test_idle_poll_after_a_burst_is_one_request(sandbox: Sandbox) -> None:
    phone = Phone(sandbox)
    conversation = phone.text("old")
    for number in range(300):
        phone.text("burst", f"+1555555{number % 150:04}", wait=0.01)
    for _ in range(300):
        phone.text("burst", wait=0.01)
    async with client_for(sandbox) as client:
        for stream, count in (
            (client.conversations.follow(conversation, after="2025-01-01T00:00:00Z"), 301),
            (client.conversations.watch(after="2025-01-01T00:00:00Z"), 601),
        ):
            for _ in range(count):
                await anext(stream)
            with anyio.move_on_after(300):
                await anext(stream)
            sandbox.requests.clear()
            with anyio.move_on_after(600):
                await anext(stream)
            assert len(sandbox.requests) <= 30


async def test_watch_reads_many_missed_messages_in_large_pages() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        start = phone.now
        for number in range(1000):
            phone.text("missed", f"+1555555{number % 5:04}")
        async with client_for(sandbox) as client:
            stream = client.conversations.watch(after=start)
            for _ in range(1000):
                await anext(stream)
        assert len(sandbox.requests) <= 1 + 5 * 3


async def test_poll_interval_above_the_maximum_is_kept() -> None:
    client, script = client_of(ok(page(message())))
    async with client:
        with anyio.move_on_after(1000):
            await anext(client.conversations.follow("conv_1", poll_interval=100))
    assert 10 <= len(script.requests) <= 15
