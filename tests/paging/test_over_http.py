"""Pagination through both clients, against the sandbox with each of its behaviors."""

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
BEHAVIORS = [
    Behavior(),
    Behavior(boundary="inclusive", after_alone="newest", message_order="oldest", timestamp_digits=3),
    Behavior(after_alone="newest", timestamp_digits=0),
    Behavior(boundary="inclusive", timestamp_digits=0),
]
ORDERS: list[Literal["asc", "desc"]] = ["desc", "asc"]


def fill(sandbox: Sandbox, count: int, seed: int) -> str:
    """Add messages at random gaps, some with equal timestamps, and return their conversation's id."""
    random, at = Random(seed), START
    for number in range(count):
        at += timedelta(microseconds=random.choice([0, 0, 1, 500, 1000, 300_000, 2_000_000]))
        conversation_id = sandbox.receive_sms(from_number=PERSON, to_number=AGENT, body=str(number), at=at)[
            "conversationId"
        ]
    return str(conversation_id)


@pytest.fixture(params=BEHAVIORS, ids=str)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.behavior = request.param
        yield sandbox


def key(message: Message) -> tuple[datetime, str]:
    return message.received_at, message.id


@pytest.mark.parametrize("order", ORDERS)
async def test_messages_are_returned_once_and_any_message_is_a_bound(
    sandbox: Sandbox, order: Literal["asc", "desc"]
) -> None:
    conversation_id = fill(sandbox, 60, seed=1)
    async with AsyncClient("key", transport=sandbox.transport()) as client:
        whole = [message async for message in client.conversations.messages(conversation_id, order=order, page_size=7)]
        assert len(whole) == 60
        assert whole == sorted(whole, key=key, reverse=order == "desc")
        for index in range(0, 60, 17):
            bound: dict[str, Any] = {"before" if order == "desc" else "after": whole[index]}
            rest = client.conversations.messages(conversation_id, order=order, **bound)
            assert [message async for message in rest] == whole[index + 1 :]
        between = client.conversations.messages(
            conversation_id,
            order=order,
            after=min(whole[10], whole[45], key=key),
            before=max(whole[10], whole[45], key=key),
        )
        assert [message async for message in between] == whole[11:45]


@pytest.mark.parametrize("order", ORDERS)
def test_sync_client_paginates_alike(sandbox: Sandbox, order: Literal["asc", "desc"]) -> None:
    conversation_id = fill(sandbox, 120, seed=2)
    with Client("key", transport=sandbox.transport()) as client:
        whole = list(client.conversations.messages(conversation_id, order=order, page_size=7))
        assert len(whole) == 120
        assert whole == sorted(whole, key=key, reverse=order == "desc")
        bound: dict[str, Any] = {"before" if order == "desc" else "after": whole[50]}
        assert list(client.conversations.messages(conversation_id, order=order, limit=9, **bound)) == whole[51:60]
        pages = list(client.conversations.messages(conversation_id, order=order, page_size=50).pages())
        assert [message for page in pages for message in page] == whole
        assert [page.has_more for page in pages] == [True] * (len(pages) - 1) + [False]


class SlowTransport(httpx.AsyncBaseTransport):
    """A slow transport that counts the requests in flight, and can make one fail."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._inner = sandbox.transport()
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
def full_sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        for number in range(260):
            sandbox.receive_sms(from_number=f"+1555010{number:04}", to_number=AGENT, body="Hello")
        yield sandbox


@pytest.mark.parametrize("concurrency", [2, 8])
async def test_pages_are_requested_concurrently_and_not_between_steps(full_sandbox: Sandbox, concurrency: int) -> None:
    transport = SlowTransport(full_sandbox)
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


async def test_error_of_one_concurrent_page_is_raised_and_the_next_step_continues(full_sandbox: Sandbox) -> None:
    transport = SlowTransport(full_sandbox)
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


async def test_cancelled_step_with_pages_in_flight_loses_nothing(full_sandbox: Sandbox) -> None:
    transport = SlowTransport(full_sandbox)
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
async def test_list_that_moves_with_every_page_returns_everybody_once(full_sandbox: Sandbox, concurrency: int) -> None:
    random = Random(concurrency)

    class MovingTransport(SlowTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            for number in random.sample(range(260), 2):
                full_sandbox.receive_sms(from_number=f"+1555010{number:04}", to_number=AGENT, body="Still there?")
            return response

    async with AsyncClient("key", transport=MovingTransport(full_sandbox)) as client:
        people = [item.participant async for item in client.conversations.list(page_size=20, concurrency=concurrency)]
        assert sorted(people) == [f"+1555010{number:04}" for number in range(260)]
