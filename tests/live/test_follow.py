"""`follow` and `watch` through the clients: what passes is outlasted, what does not is raised, nothing stays behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import IO, Any, cast

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
import trio.testing

from agentphone import (
    AsyncClient,
    AsyncStream,
    AuthenticationError,
    Client,
    ClientClosedError,
    Message,
    NewMessage,
    NotFoundError,
    RateLimitError,
    ResponseDecodeError,
    Stream,
)
from agentphone._paging import polling
from agentphone.sandbox import Behavior, Sandbox
from agentphone.sandbox.server import running
from tests.support.clocks import jumping
from tests.support.helpers import KEY, client_of, conversation, message, ok, page
from tests.support.processes import ENVIRONMENT

pytestmark = pytest.mark.anyio

AGENT, PERSON, OTHER = "+15555550100", "+15555550110", "+15555550111"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return jumping(request.param)


@pytest.fixture(params=[0, 3, 6])
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox() as made:
        made.behavior = Behavior(timestamp_digits=request.param)
        yield made


class Phone:
    """A person who texts, at instants of the test's own."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.now = datetime(2025, 6, 30, 12, tzinfo=UTC)

    def text(self, body: str, person: str = PERSON, *, late: float = 0.0, wait: float = 1.0) -> str:
        """Text the agent a second later, and give the conversation's id."""
        self.now += timedelta(seconds=wait)
        at = self.now - timedelta(seconds=late)
        got = self.box.receive_sms(from_number=person, to_number=AGENT, body=body, at=at)
        return str(got["conversationId"])


def client_for(box: Sandbox, **settings: Any) -> AsyncClient:
    return AsyncClient(KEY, base_url="https://sandbox.test", transport=box.transport(), **settings)


async def bodies(stream: AsyncStream[Message], count: int) -> list[str | None]:
    """Take so many messages."""
    return [(await anext(stream)).body for _ in range(count)]


async def until_asked(box: Sandbox, count: int = 1) -> None:
    """Wait until the sandbox has been asked so many times."""
    while len(box.requests) < count:
        await anyio.lowlevel.checkpoint()


async def test_follow_gives_what_arrives_from_its_first_step_on(box: Sandbox) -> None:
    phone = Phone(box)
    conversation = phone.text("before")
    async with client_for(box) as client, anyio.create_task_group() as group:
        stream = client.conversations.follow(conversation)
        phone.text("before the first step")
        given: list[str | None] = []

        async def read() -> None:
            given.extend(await bodies(stream, 3))

        group.start_soon(read)
        await until_asked(box)
        for body in ("one", "two", "three"):
            phone.text(body)
    assert given == ["one", "two", "three"]


async def test_follow_of_a_conversation_goes_on_behind_a_message_or_an_instant(box: Sandbox) -> None:
    phone = Phone(box)
    for number in range(500):
        conversation = phone.text(str(number))
    async with client_for(box) as client:
        history = [item async for item in client.conversations.messages(conversation, order="asc")]
        behind = client.conversations.follow(conversation, after=history[99])
        assert await bodies(behind, 400) == [str(number) for number in range(100, 500)]
        phone.text("new")
        assert await bodies(behind, 1) == ["new"]
        later = client.conversations.follow(conversation, after=history[497].received_at)
        assert await bodies(later, 2) == ["498", "499"] if box.behavior.timestamp_digits else ["499", "new"]


async def test_what_is_shown_late_still_comes_once_up_to_the_overlap(box: Sandbox) -> None:
    phone = Phone(box)
    conversation = phone.text("first")
    async with client_for(box) as client:
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


async def test_watch_gives_pairs_of_all_conversations_in_order(box: Sandbox) -> None:
    phone = Phone(box)
    phone.text("old")
    async with client_for(box) as client:
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


async def test_watch_from_now_on_leaves_out_what_was_there(box: Sandbox) -> None:
    phone = Phone(box)
    for number in range(30):
        phone.text("old", f"+1555555{number:04}")
    async with client_for(box) as client, anyio.create_task_group() as group:
        given: list[str | None] = []

        async def read() -> None:
            async for _, item in client.conversations.watch():
                given.append(item.body)
                if len(given) == 2:
                    break

        group.start_soon(read)
        await until_asked(box)
        phone.text("new", "+15555550005")
        phone.text("newer", "+15555559999")
    assert given == ["new", "newer"]


async def test_a_conversation_that_has_no_messages_yet_and_an_account_without_any() -> None:
    with Sandbox() as box:
        async with client_for(box) as client, anyio.create_task_group() as group:
            given: list[str | None] = []

            async def read() -> None:
                given.append((await anext(client.conversations.watch())).message.body)

            group.start_soon(read)
            await until_asked(box)
            Phone(box).text("the very first")
        assert given == ["the very first"]


@pytest.mark.parametrize(("of_all", "most_idle", "most_busy"), [(False, 160, 400), (True, 85, 320)])
async def test_an_idle_hour_takes_few_requests_and_a_busy_one_no_more_than_its_interval_allows(
    of_all: bool, most_idle: int, most_busy: int
) -> None:
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(box) as client:
            stream: Any = client.conversations.watch() if of_all else client.conversations.follow(conversation)
            with anyio.move_on_after(3600):
                await anext(stream)
            assert 50 < len(box.requests) <= most_idle

            box.requests.clear()
            with anyio.move_on_after(600):
                while True:
                    phone.text("new")
                    await anext(stream)
            assert 100 < len(box.requests) <= most_busy


async def test_after_a_large_burst_an_idle_poll_is_one_request_again(box: Sandbox) -> None:
    phone = Phone(box)
    conversation = phone.text("old")
    for number in range(700):
        phone.text("burst", f"+1555555{number % 150:04}", wait=0.01)
    for _ in range(700):
        phone.text("burst", wait=0.01)
    async with client_for(box) as client:
        for stream, count in (
            (client.conversations.follow(conversation, after="2025-01-01T00:00:00Z"), 701),
            (client.conversations.watch(after="2025-01-01T00:00:00Z"), 1401),
        ):
            for _ in range(count):
                await anext(stream)
            with anyio.move_on_after(300):
                await anext(stream)
            box.requests.clear()
            with anyio.move_on_after(600):
                await anext(stream)
            assert len(box.requests) <= 30


async def test_a_watch_that_was_away_for_long_reads_what_it_missed_in_large_pages() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        start = phone.now
        for number in range(1000):
            phone.text("missed", f"+1555555{number % 5:04}")
        async with client_for(box) as client:
            stream = client.conversations.watch(after=start)
            for _ in range(1000):
                await anext(stream)
        assert len(box.requests) <= 1 + 5 * 3


async def test_what_passes_is_outlasted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, float]] = []
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(
            box, max_retries=0, on_retry=lambda error, pause: told.append((type(error).__name__, pause))
        ) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            box.faults.add(status=503, times=20)
            phone.text("new")
            with caplog.at_level(logging.WARNING, "agentphone"):
                assert await bodies(stream, 1) == ["new"]
    assert [name for name, _ in told] == ["ServerError"] * 20
    assert told[0][1] <= 2.0
    assert all(pause <= 30.0 for _, pause in told)
    assert told[-1][1] >= 20.0
    assert sum("503; trying again in" in record.getMessage() for record in caplog.records) == 20


async def test_a_server_that_is_away_for_ten_minutes_is_waited_for() -> None:
    back_at = anyio.current_time() + 600.0
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        inner = box.transport()

        async def answer(request: httpx.Request) -> httpx.Response:
            if anyio.current_time() < back_at:
                raise httpx.ConnectError("refused")
            return await inner.handle_async_request(request)

        client, script = client_of(answer)
        phone.text("new")
        async with client:
            assert await bodies(client.conversations.follow(conversation, after="2025-06-30T12:00:01Z"), 1) == ["new"]
        assert anyio.current_time() < back_at + 60
        assert len(script.requests) < 200


@pytest.mark.parametrize("retry_after", [45, 600])
async def test_a_rate_limit_is_respected_also_beyond_what_a_call_would_wait(retry_after: int) -> None:
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(box, max_retries=0) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            phone.text("new")
            box.faults.add(status=429, retry_after=retry_after)
            began = anyio.current_time()
            assert await bodies(stream, 1) == ["new"]
            assert retry_after - 1e-6 <= anyio.current_time() - began <= retry_after + 5
            box.faults.add(status=429, retry_after=10**6)
            with pytest.raises(RateLimitError):
                await anext(stream)


async def test_what_does_not_pass_is_raised_and_the_next_step_asks_again() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(box) as client:
            with pytest.raises(NotFoundError):
                await anext(client.conversations.follow("conv_nobody"))
            for stream in (
                client.conversations.follow(conversation, after=phone.now),
                client.conversations.watch(after=phone.now),
            ):
                box.faults.add(status=401)
                with pytest.raises(AuthenticationError):
                    await anext(stream)
                box.faults.add(status=200, body="<html>not what it should be</html>")
                with pytest.raises(ResponseDecodeError):
                    await anext(stream)
                phone.text("new")
                assert "new" in repr(await anext(stream))


async def test_a_conversation_that_goes_while_it_is_watched_is_passed_over() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        start = phone.now
        gone = phone.text("gone")
        phone.text("there", OTHER)
        box.faults.add(status=404, path=f"/v1/conversations/{gone}/messages")
        async with client_for(box) as client:
            stream = client.conversations.watch(after=start)
            assert (await anext(stream)).message.body == "there"


Fault = Callable[[httpx.Request], httpx.Response | None]


def faulty(box: Sandbox, fault: Fault, *, date: datetime | None = None) -> AsyncClient:
    """Make a client of a sandbox that may be answered by `fault` instead, at its own `date`."""
    inner = box.transport()

    async def answer(request: httpx.Request) -> httpx.Response:
        answered = fault(request) or await inner.handle_async_request(request)
        if date is not None:
            answered.headers["Date"] = format_datetime(date, usegmt=True)
        return answered

    return client_of(answer)[0]


def not_found(_: httpx.Request) -> httpx.Response:
    return httpx.Response(404, json={"error": {"message": "Not Found"}})


def no_conversations(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=page(total=0))


def at(answer: Callable[[httpx.Request], httpx.Response], *numbers: int) -> Fault:
    """Give this answer to those requests for the list, counted from 1."""
    count = 0

    def fault(request: httpx.Request) -> httpx.Response | None:
        nonlocal count
        if request.url.path != "/v1/conversations":
            return None
        count += 1
        return answer(request) if count in numbers else None

    return fault


def full_box(box: Sandbox) -> Phone:
    """Fill an account with old messages of 60 people."""
    phone = Phone(box)
    for number in range(120):
        phone.text("old", f"+1555555{number % 60:04}", wait=100)
    return phone


async def test_watch_raises_when_the_list_is_not_found() -> None:
    """A wrong base URL must not look like an account without conversations."""
    client, script = client_of(not_found_always)
    async with client:
        stream = client.conversations.watch()
        for _ in range(2):
            with pytest.raises(NotFoundError) as raised:
                await anext(stream)
            assert str(raised.value).startswith("GET /v1/conversations?")
    assert len(script.requests) == 2


async def not_found_always(request: httpx.Request) -> httpx.Response:
    return not_found(request)


@pytest.mark.parametrize("begins", ["now", "message", "instant"])
@pytest.mark.parametrize("number", [1, 2])
async def test_watch_goes_on_after_the_list_was_not_found(begins: str, number: int) -> None:
    with Sandbox() as box:
        phone = full_box(box)
        async with faulty(box, at(not_found, number)) as client:
            after: Any = {"now": None, "instant": phone.now, "message": await newest_of(box)}[begins]
            stream = client.conversations.watch(after=after)
            with pytest.raises(NotFoundError):
                await anext(stream)
            with anyio.move_on_after(100):
                await anext(stream)
            phone.text("new", wait=100)
            assert (await anext(stream)).message.body == "new"


async def newest_of(box: Sandbox) -> Message:
    """Read the newest message of an account."""
    async with client_for(box) as client:
        conversation = (await client.conversations.list(limit=1))[0]
        return (await client.conversations.messages(conversation.id, limit=1))[0]


@pytest.mark.parametrize("begins", ["now", "message", "instant"])
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2, 3), (2, 4, 5)])
async def test_a_list_that_is_empty_for_a_moment_makes_no_old_message_new(begins: str, numbers: tuple[int]) -> None:
    with Sandbox() as box:
        phone = full_box(box)
        after: Any = {"now": None, "instant": phone.now, "message": await newest_of(box)}[begins]
        now = phone.now + timedelta(seconds=100)
        async with faulty(box, at(no_conversations, *numbers), date=now) as client:
            stream = client.conversations.watch(after=after)
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None
            phone.text("new", wait=100)
            phone.text("newer", "+15555559999")
            assert [(await anext(stream)).message.body for _ in range(2)] == ["new", "newer"]


async def test_an_empty_first_page_that_says_more_makes_no_old_message_new() -> None:
    def says_more(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=page(total=60, has_more=True))

    with Sandbox() as box:
        phone = full_box(box)
        fault = at(says_more, 1, 2)
        async with faulty(box, fault) as client, anyio.create_task_group() as group:
            given: list[str | None] = []

            async def read() -> None:
                given.append((await anext(client.conversations.watch())).message.body)

            group.start_soon(read)
            await anyio.sleep(100)
            assert len(box.requests) < 50
            phone.text("new", wait=100)
        assert given == ["new"]


async def test_the_first_message_of_a_new_account_is_new_by_the_servers_clock() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        async with (
            faulty(box, lambda _: None, date=phone.now) as client,
            anyio.create_task_group() as group,
        ):
            given: list[str | None] = []

            async def read() -> None:
                given.append((await anext(client.conversations.watch())).message.body)

            group.start_soon(read)
            await until_asked(box)
            phone.text("the very first", late=20)
        assert given == ["the very first"]


@pytest.mark.parametrize("status", [404, 200])
async def test_messages_that_are_missing_for_one_poll_come_once(status: int) -> None:
    """All conversations at once, as where the API is deployed anew."""
    with Sandbox() as box:
        phone = full_box(box)
        left = 0

        def fault(request: httpx.Request) -> httpx.Response | None:
            nonlocal left
            if left == 0 or not request.url.path.endswith("/messages"):
                return None
            left -= 1
            return not_found(request) if status == 404 else httpx.Response(200, json=page())

        async with faulty(box, fault) as client:
            stream = client.conversations.watch(after=phone.now)
            with anyio.move_on_after(1000):  # so that it has been quiet for long
                await anext(stream)
            bodies = [str(number) for number in range(40)]
            for body in bodies:
                phone.text(body, f"+1555555{int(body) % 30:04}")
            left = 30
            given = [(await anext(stream)).message.body for _ in bodies]
            assert sorted(str(body) for body in given) == sorted(bodies)
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None


async def test_a_page_that_is_not_found_in_the_middle_loses_no_message() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        start = phone.now
        for number in range(500):
            phone.text(str(number))
        seen: list[str] = []

        def fault(request: httpx.Request) -> httpx.Response | None:
            seen.append(request.url.path)
            return not_found(request) if len(seen) == 3 else None  # the second page of its messages

        async with faulty(box, fault) as client:
            stream = client.conversations.watch(after=start)
            given = {(await anext(stream)).message.body for _ in range(500)}
        assert given == {str(number) for number in range(500)}


@pytest.mark.parametrize("begins", ["now", "message", "instant"])
async def test_follow_of_messages_that_are_empty_for_a_moment_makes_no_old_one_new(begins: str) -> None:
    with Sandbox() as box:
        phone = Phone(box)
        for _ in range(300):
            conversation = phone.text("old", wait=100)
        after: Any = {"now": None, "instant": phone.now, "message": await newest_of(box)}[begins]
        count = 0

        def fault(_: httpx.Request) -> httpx.Response | None:
            nonlocal count
            count += 1
            return httpx.Response(200, json=page()) if count in (1, 3) else None

        now = phone.now + timedelta(seconds=100)
        async with faulty(box, fault, date=now) as client:
            stream = client.conversations.follow(conversation, after=after)
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None
            phone.text("new", wait=100)
            assert await bodies(stream, 1) == ["new"]


async def test_watch_gives_what_comes_behind_messages_that_are_dated_in_the_future() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        for number in range(30):
            phone.text("future", f"+1555556{number:04}", late=-7200)
        async with faulty(box, lambda _: None, date=phone.now) as client:
            stream = client.conversations.watch()
            with anyio.move_on_after(300):
                assert (await anext(stream)) is None
            phone.text("one", "+15555559990")
            assert (await anext(stream)).message.body == "one"
            phone.text("late", "+15555559991", late=20)
            phone.text("two", "+15555559990")
            assert {(await anext(stream)).message.body for _ in range(2)} == {"late", "two"}


@pytest.mark.parametrize("kind", ["not there yet", "not shown yet"])
async def test_a_message_that_the_list_knows_before_the_messages_do_comes_when_it_shows(kind: str) -> None:
    with Sandbox() as box:
        phone = Phone(box)
        start = phone.now
        new = phone.text("new")
        status, body = (404, None) if kind == "not there yet" else (200, '{"data":[],"hasMore":false}')
        box.faults.add(status=status, body=body, path=f"/v1/conversations/{new}/messages", times=2)
        async with client_for(box) as client:
            stream = client.conversations.watch(after=start)
            assert (await anext(stream)).message.body == "new"
            gone = phone.text("gone")
            box.faults.add(status=404, path=f"/v1/conversations/{gone}/messages", times=10**6)
            with anyio.move_on_after(300):
                await anext(stream)
            box.requests.clear()
            with anyio.move_on_after(600):
                await anext(stream)
            assert len(box.requests) < 20, "one that shows nothing is given up"


async def test_conversations_without_messages_at_the_front_of_the_list_hide_no_others() -> None:
    shown = [f"conv_{number}" for number in range(60)]
    silent = [conversation(id="conv_silent") | {"lastMessageAt": None, "messageCount": 0}]

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/messages"):
            name = request.url.path.split("/")[3]
            return httpx.Response(200, json=page(message(id=f"msg_{name}", receivedAt="2025-06-30T12:00:05Z")))
        limit, offset = int(request.url.params["limit"]), int(request.url.params["offset"])
        there = silent + [conversation(id=name) | {"lastMessageAt": "2025-06-30T12:00:05Z"} for name in shown]
        found = there[offset : offset + limit]
        return httpx.Response(200, json={"data": found, "hasMore": offset + limit < len(there), "total": len(there)})

    client, _ = client_of(answer)
    async with client:
        stream = client.conversations.watch(after="2025-06-30T12:00:00Z")
        assert {(await anext(stream)).conversation.id for _ in shown} == set(shown)


async def test_a_hook_that_raises_ends_the_step_and_the_next_one_still_rests() -> None:
    class EnoughError(Exception):
        """What the hook raises."""

    def stop(error: Exception, pause: float) -> None:
        raise EnoughError

    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(box, max_retries=0, on_retry=stop) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            box.faults.add(status=503)
            with pytest.raises(EnoughError):
                await anext(stream)
            phone.text("new")
            began = anyio.current_time()
            assert await bodies(stream, 1) == ["new"]
            assert anyio.current_time() - began > 1


async def test_a_stream_that_was_broken_off_says_so_and_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as box:
        conversation = Phone(box).text("old")
        async with client_for(box) as client:
            stream = client.conversations.follow(conversation)

            def interrupt(*_: Any) -> None:
                raise KeyboardInterrupt

            monkeypatch.setattr(polling.SeenMessages, "take", interrupt)
            with pytest.raises(KeyboardInterrupt):
                await anext(stream)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="Begin a new one"):
                    await anext(stream)


async def test_closing_it_ends_the_step_that_waits() -> None:
    with Sandbox() as box:
        conversation = Phone(box).text("old")
        async with client_for(box) as client:
            for stream in (client.conversations.follow(conversation), client.conversations.watch()):
                async with anyio.create_task_group() as group:

                    async def read(stream: AsyncStream[Any] = stream) -> None:
                        assert [item async for item in stream] == []

                    group.start_soon(read)
                    await anyio.sleep(100)
                    await stream.aclose()
                await stream.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)


async def test_closing_the_client_ends_a_rest_with_its_error() -> None:
    with Sandbox() as box:
        conversation = Phone(box).text("old")
        client = client_for(box)
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(ClientClosedError):
                    await anext(client.conversations.follow(conversation))

            group.start_soon(read)
            await anyio.sleep(100)
            began = anyio.current_time()
            await client.aclose()
        assert anyio.current_time() - began < 1


async def test_a_step_that_is_cancelled_loses_nothing() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(box) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            given: list[str | None] = []
            for number in range(50):
                phone.text(str(number))
                with anyio.move_on_after(0.1 * (number % 20)):
                    given.append((await anext(stream)).body)
            while len(given) < 50:
                given.append((await anext(stream)).body)
    assert given == [str(number) for number in range(50)]


async def test_time_that_the_caller_takes_counts_as_rest() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        conversation = phone.text("old")
        async with client_for(box) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            phone.text("one")
            await anext(stream)
            phone.text("two")
            await anyio.sleep(60)
            began = anyio.current_time()
            await anext(stream)
            assert anyio.current_time() == began


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"poll_interval": 0}, ValueError),
        ({"poll_interval": -1.0}, ValueError),
        ({"poll_interval": float("nan")}, ValueError),
        ({"poll_interval": True}, TypeError),
        ({"poll_interval": "2"}, TypeError),
        ({"max_poll_interval": float("inf")}, ValueError),
        ({"overlap": -1}, ValueError),
        ({"overlap": None}, TypeError),
        ({"after": "2025-06-30"}, ValueError),
        ({"after": datetime(2025, 6, 30)}, ValueError),  # naive is the point
        ({"after": 5}, TypeError),
    ],
)
async def test_a_wrong_argument_is_told_before_anything_is_sent(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    client, script = client_of(ok())
    async with client:
        with pytest.raises(error):
            client.conversations.follow("conv_1", **arguments)
        with pytest.raises(error):
            client.conversations.watch(**arguments)
        with pytest.raises(ValueError, match="conversation_id must not be empty"):
            client.conversations.follow("")
    assert script.requests == []


async def test_an_interval_above_the_longest_one_is_kept() -> None:
    client, script = client_of(ok(page(message())))
    async with client:
        with anyio.move_on_after(1000):
            await anext(client.conversations.follow("conv_1", poll_interval=100))
    assert 10 <= len(script.requests) <= 15


def test_a_stream_goes_on_under_another_event_loop_whatever_its_clock_says() -> None:
    """trio begins the clock of each event loop anywhere within eleven days."""
    with Sandbox() as box:
        phone = Phone(box)
        client = client_for(box)
        stream = client.conversations.follow(phone.text("old"), after=phone.now, poll_interval=0.05)

        async def step(seconds: float) -> list[str | None]:
            with anyio.move_on_after(seconds):
                return await bodies(stream, 1)
            return []

        ahead = trio.testing.MockClock(rate=1.0)
        ahead.jump(10_000.0)
        assert anyio.run(step, 0.2, backend="trio", backend_options={"clock": ahead}) == []
        phone.text("new")
        behind = trio.testing.MockClock(rate=1.0)
        assert anyio.run(step, 30.0, backend="trio", backend_options={"clock": behind}) == ["new"]
        anyio.run(client.aclose)


async def test_a_hundred_followers_share_the_limiter_of_their_client() -> None:
    with Sandbox() as box:
        phone = Phone(box)
        start = phone.now
        conversations = [phone.text("new", f"+1555555{number:04}") for number in range(100)]
        inner = box.transport()
        in_flight = most = 0

        async def answer(request: httpx.Request) -> httpx.Response:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            await anyio.sleep(0.1)
            in_flight -= 1
            return await inner.handle_async_request(request)

        client, _ = client_of(answer, max_connections=5)
        given: list[str | None] = []

        async def follow(conversation: str) -> None:
            given.extend(await bodies(client.conversations.follow(conversation, after=start), 1))

        async with client, anyio.create_task_group() as group:
            for conversation in conversations:
                group.start_soon(follow, conversation)
    assert given == ["new"] * 100
    assert most == 5


# Blocking


def test_the_blocking_face_follows_and_watches() -> None:
    with Sandbox() as box, Client(KEY, base_url="https://sandbox.test", transport=box.transport()) as client:
        phone = Phone(box)
        conversation = phone.text("old")
        follow = client.conversations.follow(conversation, after=phone.now, poll_interval=0.01)
        watch = client.conversations.watch(after=phone.now, poll_interval=0.01)
        assert isinstance(follow, Stream)
        for number in range(5):
            phone.text(str(number))
        assert [next(follow).body for _ in range(2)] == ["0", "1"]
        seen = []
        for found, item in watch:
            assert found.id == conversation
            seen.append(item.body)
            if len(seen) == 5:
                break
        assert seen == ["0", "1", "2", "3", "4"]
        # What was taken from it stays taken, also from one `for` loop to the next.
        assert [next(follow).body for _ in range(3)] == ["2", "3", "4"]


def test_closing_it_ends_another_threads_loop() -> None:
    with Sandbox() as box, Client(KEY, base_url="https://sandbox.test", transport=box.transport()) as client:
        conversation = Phone(box).text("old")
        stream = client.conversations.follow(conversation, poll_interval=0.05)
        ended = threading.Event()

        def read() -> None:
            for _ in stream:
                pass
            ended.set()

        state = threading.Thread(target=read)
        state.start()
        while not box.requests:
            ended.wait(0.01)
        stream.close()
        assert ended.wait(30)
        state.join()
        assert list(stream) == []


ENDED_BY_CTRL_C = """\
import sys, time
from agentphone import Client

client = Client("key", base_url=sys.argv[1])
try:
    for message in client.conversations.follow(sys.argv[2], poll_interval=0.05, max_poll_interval=0.05):
        print(message.body, flush=True)
except KeyboardInterrupt:
    print("ended", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_ends_a_blocking_loop_and_leaves_nothing_running() -> None:
    with Sandbox() as box, running(box) as url:
        conversation = Phone(box).text("old")
        with subprocess.Popen(
            [sys.executable, "-c", ENDED_BY_CTRL_C, url, conversation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as process:
            try:
                said = cast("IO[str]", process.stdout)
                while len(box.requests) < 5:
                    assert process.poll() is None
                    time.sleep(0.01)
                box.receive_sms(from_number=PERSON, to_number=AGENT, body="new")
                assert said.readline() == "new\n"
                process.send_signal(signal.SIGINT)
                assert said.readline() == "ended\n"
                time.sleep(0.2)  # what was on its way has arrived
                count = len(box.requests)
                time.sleep(1.0)  # twenty polls, if it went on
                assert len(box.requests) == count
            finally:
                process.kill()
