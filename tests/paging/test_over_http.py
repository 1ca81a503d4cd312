"""The walks through both clients, against the sandbox with each of its readings: the promise as users see it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal

import anyio
import httpx
import pytest

from agentphone import APIStatusError, AsyncClient, Client, Message
from agentphone.sandbox import Behavior, Sandbox

pytestmark = pytest.mark.anyio

PERSON, AGENT = "+15550100001", "+15550100002"
START = datetime(2025, 1, 15, 12, tzinfo=UTC)
READINGS = [
    Behavior(),
    Behavior(boundary="inclusive", after_alone="newest", message_order="oldest", timestamp_digits=3),
    Behavior(after_alone="newest", timestamp_digits=0),
    Behavior(boundary="inclusive", timestamp_digits=0),
]
ORDERS: list[Literal["asc", "desc"]] = ["desc", "asc"]


def fill(box: Sandbox, count: int, seed: int) -> str:
    """Let messages come in at random gaps, ties among them, and give their conversation."""
    random, at = Random(seed), START
    for number in range(count):
        at += timedelta(microseconds=random.choice([0, 0, 1, 500, 1000, 300_000, 2_000_000]))
        conversation_id = box.receive_sms(from_number=PERSON, to_number=AGENT, body=str(number), at=at)[
            "conversationId"
        ]
    return str(conversation_id)


@pytest.fixture(params=READINGS, ids=str)
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox() as box:
        box.behavior = request.param
        yield box


def key(message: Message) -> tuple[datetime, str]:
    return message.received_at, message.id


@pytest.mark.parametrize("order", ORDERS)
async def test_every_message_comes_once_and_resuming_behind_any_goes_on_exactly_there(
    box: Sandbox, order: Literal["asc", "desc"]
) -> None:
    conversation_id = fill(box, 120, seed=1)
    async with AsyncClient("key", transport=box.transport()) as client:
        whole = [message async for message in client.conversations.messages(conversation_id, order=order, page_size=7)]
        assert len(whole) == 120
        assert whole == sorted(whole, key=key, reverse=order == "desc")
        for index in range(0, 120, 17):
            bound: dict[str, Any] = {"before" if order == "desc" else "after": whole[index]}
            next_delay = client.conversations.messages(conversation_id, order=order, **bound)
            assert [message async for message in next_delay] == whole[index + 1 :]
        between = client.conversations.messages(
            conversation_id,
            order=order,
            after=min(whole[20], whole[90], key=key),
            before=max(whole[20], whole[90], key=key),
        )
        assert [message async for message in between] == whole[21:90]


@pytest.mark.parametrize("order", ORDERS)
def test_the_blocking_client_walks_the_same_way(box: Sandbox, order: Literal["asc", "desc"]) -> None:
    conversation_id = fill(box, 120, seed=2)
    with Client("key", transport=box.transport()) as client:
        whole = list(client.conversations.messages(conversation_id, order=order, page_size=7))
        assert len(whole) == 120
        assert whole == sorted(whole, key=key, reverse=order == "desc")
        bound: dict[str, Any] = {"before" if order == "desc" else "after": whole[50]}
        assert list(client.conversations.messages(conversation_id, order=order, limit=9, **bound)) == whole[51:60]
        pages = list(client.conversations.messages(conversation_id, order=order, page_size=50).pages())
        assert [message for page in pages for message in page] == whole
        assert [page.has_more for page in pages] == [True] * (len(pages) - 1) + [False]


class Slow(httpx.AsyncBaseTransport):
    """Counts what is in flight, lets the list move under it, and fails where it is told to."""

    def __init__(self, box: Sandbox) -> None:
        self._inner = box.transport()
        self.in_flight = self.most = self.count = 0
        self.fail_at: int | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.count += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if self.count == self.fail_at:
                return httpx.Response(418)
            await anyio.sleep(0.002)
            return await self._inner.handle_async_request(request)
        finally:
            self.in_flight -= 1


@pytest.fixture
def inbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        for number in range(260):
            box.receive_sms(from_number=f"+1555010{number:04}", to_number=AGENT, body="Hello")
        yield box


@pytest.mark.parametrize("concurrency", [2, 8])
async def test_pages_are_in_flight_at_once_and_nothing_is_between_steps(inbox: Sandbox, concurrency: int) -> None:
    transport = Slow(inbox)
    async with AsyncClient("key", transport=transport) as client:
        seen = []
        async for conversation in client.conversations.list(page_size=10, concurrency=concurrency):
            assert transport.in_flight == 0
            seen.append(conversation.id)
        assert len(set(seen)) == len(seen) == 260
        assert transport.most == concurrency
        assert transport.count <= 26 + 1
        async for _ in client.conversations.list(page_size=10, concurrency=concurrency):
            break
        assert transport.in_flight == 0


async def test_one_page_of_several_that_fails_is_that_error_and_the_next_step_goes_on(inbox: Sandbox) -> None:
    transport = Slow(inbox)
    transport.fail_at = 5
    async with AsyncClient("key", transport=transport) as client:
        steps = aiter(client.conversations.list(page_size=10, concurrency=8))
        seen = []
        seen += [(await anext(steps)).id for _ in range(10)]  # the first page, alone
        with pytest.raises(APIStatusError) as caught:
            await anext(steps)
        assert caught.value.status_code == 418
        assert transport.in_flight == 0
        seen += [conversation.id async for conversation in steps]
        assert len(set(seen)) == len(seen) == 260


async def test_a_step_cancelled_with_pages_in_flight_loses_nothing(inbox: Sandbox) -> None:
    transport = Slow(inbox)
    async with AsyncClient("key", transport=transport) as client:
        steps = aiter(client.conversations.list(page_size=10, concurrency=8))
        seen = [(await anext(steps)).id for _ in range(10)]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(steps)
        assert transport.in_flight == 0
        seen += [conversation.id async for conversation in steps]
        assert len(set(seen)) == len(seen) == 260


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_list_that_moves_with_every_page_gives_everybody_once(inbox: Sandbox, concurrency: int) -> None:
    random = Random(concurrency)

    class Moving(Slow):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            for number in random.sample(range(260), 2):
                inbox.receive_sms(from_number=f"+1555010{number:04}", to_number=AGENT, body="Still there?")
            return response

    async with AsyncClient("key", transport=Moving(inbox)) as client:
        people = [item.participant async for item in client.conversations.list(page_size=20, concurrency=concurrency)]
        assert sorted(people) == [f"+1555010{number:04}" for number in range(260)]
