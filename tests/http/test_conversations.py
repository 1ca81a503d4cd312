"""The conversation endpoints end to end, with a sandbox in this process and behind a real socket.

The lists here do not change and no two timestamps are equal. `tests/paging` tests what else pagination promises.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.lowlevel
import httpx
import pytest
from attrs import frozen

from agentphone import (
    AsyncClient,
    AsyncConversations,
    ConversationDetail,
    Message,
    NotFoundError,
    Page,
    ResponseDecodeError,
    ServerError,
    UnprocessableEntityError,
)
from agentphone.sandbox import Sandbox
from tests.conftest import Server
from tests.support.canned import CannedTransport
from tests.support.helpers import KEY, client_of, conversation, message, ok, open_sockets, page

pytestmark = pytest.mark.anyio

AGENT = "+15555550100"
PERSON = "+15555550110"
START = datetime(2025, 6, 30, tzinfo=UTC)
COUNT = 450


def second(number: int) -> datetime:
    """Return the timestamp of the message with this number."""
    return START + timedelta(seconds=number)


def fill(box: Sandbox, count: int) -> str:
    """Add a conversation with one message a second, whose texts are 0, 1, ...; return its id."""
    found = ""
    for number in range(count):
        event = box.receive_sms(from_number=PERSON, to_number=AGENT, body=str(number), at=second(number))
        found = event["conversationId"]
    return found


@frozen
class World:
    """A client, a conversation of 450 messages, and the requests that the client sent."""

    client: AsyncClient
    conversation_id: str
    requests: list[httpx.Request]

    def queries(self) -> list[dict[str, str]]:
        """Return the query of each request so far, and clear the list."""
        found = [dict(parse_qsl(urlsplit(str(request.url)).query)) for request in self.requests]
        self.requests.clear()
        return found


@pytest.fixture(scope="session")
def long_conversation(server: Server) -> str:
    return fill(server.box, COUNT)


@pytest.fixture(scope="session")
def box() -> Any:
    with Sandbox() as box:
        fill(box, COUNT)
        yield box


@pytest.fixture
async def world(anyio_backend_name: str, box: Sandbox, server: Server, long_conversation: str) -> AsyncIterator[World]:
    """Return the one in this process for asyncio, and the one over a socket for trio."""
    requests: list[httpx.Request] = []
    is_in_process = anyio_backend_name == "asyncio"
    settings: dict[str, Any] = {"transport": box.transport()} if is_in_process else {"base_url": server.url}
    async with AsyncClient(KEY, on_request=requests.append, **settings) as client:
        if is_in_process:
            long_conversation = (await client.conversations.list(limit=1))[0].id
            requests.clear()
        yield World(client, long_conversation, requests)


def bodies(messages: Any) -> list[int]:
    """Return the texts of messages as numbers."""
    return [int(item.body) for item in messages]


# ---- Messages


async def test_messages_are_yielded_once_newest_first(world: World) -> None:
    pager = world.client.conversations.messages(world.conversation_id)
    assert world.requests == []
    assert bodies([item async for item in pager]) == list(range(COUNT))[::-1]
    queries = world.queries()
    assert len(queries) <= 4  # three pages of 200, and at most one request to find the end
    assert {query["limit"] for query in queries} == {"200"}


async def test_pager_can_be_iterated_again(world: World) -> None:
    pager = world.client.conversations.messages(world.conversation_id, limit=3)
    assert [item async for item in pager] == [item async for item in pager]


async def test_order_asc_is_oldest_first(world: World) -> None:
    pager = world.client.conversations.messages(world.conversation_id, order="asc")
    assert bodies([item async for item in pager]) == list(range(COUNT))


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 200, 201, COUNT, COUNT + 1])
async def test_limit_is_the_maximum_number_of_messages(world: World, order: Any, limit: int) -> None:
    pager = world.client.conversations.messages(world.conversation_id, limit=limit, order=order)
    expected = list(range(COUNT))[:: 1 if order == "asc" else -1][:limit]
    assert bodies([item async for item in pager]) == expected
    assert all(int(query["limit"]) <= 200 for query in world.queries())


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("form", ["datetime", "other zone", "string", "message"])
async def test_before_and_after_are_exclusive_for_every_type(world: World, order: Any, form: str) -> None:
    messages = world.client.conversations.messages
    by_number = {int(item.body or ""): item async for item in messages(world.conversation_id)}

    def bound(number: int) -> Any:
        timestamp = second(number)
        return {
            "datetime": timestamp,
            "other zone": timestamp.astimezone(),
            "string": timestamp.isoformat(),
            "message": by_number[number],
        }[form]

    async def between(**bounds: Any) -> list[int]:
        return sorted(bodies([m async for m in messages(world.conversation_id, order=order, **bounds)]))

    assert await between(before=bound(400), after=bound(10)) == list(range(11, 400))
    assert await between(before=bound(3)) == [0, 1, 2]
    assert await between(after=bound(446)) == [447, 448, 449]
    assert await between(before=bound(0)) == []
    assert await between(after=bound(449)) == []
    assert await between(before=bound(10), after=bound(10)) == []
    assert await between(before=bound(10), after=bound(9)) == []


async def test_iteration_resumes_after_a_message(world: World) -> None:
    messages = world.client.conversations.messages
    first = [item async for item in messages(world.conversation_id, limit=7)]
    rest = [item async for item in messages(world.conversation_id, before=first[-1])]
    assert bodies(first + rest) == list(range(COUNT))[::-1]


@pytest.mark.parametrize("page_size", [1, 7, 200])
async def test_page_size_is_the_limit_of_a_request(world: World, page_size: int) -> None:
    pager = world.client.conversations.messages(world.conversation_id, page_size=page_size, after=second(439))
    assert bodies([item async for item in pager]) == list(range(440, COUNT))[::-1]
    assert world.queries()[0]["limit"] == str(page_size)


async def test_pages_contain_the_items_and_has_more(world: World) -> None:
    pager = world.client.conversations.messages(world.conversation_id, page_size=100)
    pages = [found async for found in pager.pages()]
    assert all(isinstance(found, Page) for found in pages)
    assert [item for found in pages for item in bodies(found)] == list(range(COUNT))[::-1]
    assert [found.has_more for found in pages] == [True] * (len(pages) - 1) + [False]
    assert {found.total for found in pages} == {None}


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_tasks_stepping_one_iterator_lose_nothing(world: World, order: Any) -> None:
    steps = aiter(world.client.conversations.messages(world.conversation_id, page_size=20, order=order))
    got: list[Message] = []
    refused: list[str] = []

    async def work() -> None:
        while True:
            try:
                got.append(await anext(steps))
            except StopAsyncIteration:
                return
            except RuntimeError as error:
                refused.append(str(error))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(work)
    assert sorted(bodies(got)) == list(range(COUNT))
    assert "one at a time" in refused[0]


async def test_page_is_one_request(world: World) -> None:
    pager = world.client.conversations.messages(world.conversation_id, limit=250, order="asc", after=second(9))
    for found in (await pager, await pager.page()):
        assert len(found) == 200
        assert found.has_more
    queries = world.queries()
    assert len(queries) == 2
    assert queries[0] == queries[1] == {"limit": "200", "after": "2025-06-30T00:00:09Z"}


async def test_step_requests_no_page_that_it_does_not_need(world: World) -> None:
    steps = aiter(world.client.conversations.messages(world.conversation_id, page_size=10))
    for _ in range(9):  # the last item of a page is held back, in case the next page begins with the same timestamp
        await anext(steps)
    assert len(world.requests) == 1
    for _ in range(9):
        await anext(steps)
    assert len(world.requests) == 2


# ---- Conversations


@pytest.fixture(scope="session")
def crowd() -> Iterator[Sandbox]:
    """Create a project of 330 conversations; 0 is the oldest."""
    with Sandbox() as box:
        for number in range(330):
            box.receive_sms(from_number=f"+1555{number}", to_number=AGENT, body="x", at=second(number))
        yield box


@pytest.fixture
async def many(crowd: Sandbox) -> AsyncIterator[World]:
    """Return a client of that project."""
    requests: list[httpx.Request] = []
    async with AsyncClient(KEY, transport=crowd.transport(), on_request=requests.append) as client:
        yield World(client, "", requests)


async def numbers(pager: Any) -> list[int]:
    """Return the number of each conversation of a list."""
    return [int(item.participant.removeprefix("+1555")) async for item in pager]


async def test_conversations_are_yielded_once_most_recent_first(many: World) -> None:
    assert await numbers(many.client.conversations.list()) == list(range(330))[::-1]
    queries = many.queries()
    assert len(queries) <= 5  # at most N + 1 requests for N pages
    assert {query["limit"] for query in queries} == {"100"}


@pytest.mark.parametrize(
    ("arguments", "first", "count", "requested"),
    [
        ({"limit": 3}, 329, 3, [(3, 0)]),
        ({"limit": 100}, 329, 100, [(100, 0)]),
        ({"limit": 250}, 329, 250, [(100, 0), (100, 100), (50, 200)]),
        ({"limit": 5, "page_size": 2}, 329, 5, [(2, 0), (2, 2), (1, 4)]),
        ({"limit": 10, "offset": 20}, 309, 10, [(10, 20)]),
        ({"limit": 10, "offset": 325}, 4, 5, [(10, 325)]),
        ({"offset": 330}, 0, 0, [(100, 330)]),
        ({"offset": 10_000}, 0, 0, [(100, 10_000)]),
    ],
    ids=str,
)
async def test_limit_offset_and_page_size_request_no_more_than_needed(
    many: World, arguments: dict[str, int], first: int, count: int, requested: list[tuple[int, int]]
) -> None:
    assert await numbers(many.client.conversations.list(**arguments)) == [first - step for step in range(count)]
    assert [(int(query["limit"]), int(query["offset"])) for query in many.queries()] == requested


@pytest.mark.parametrize("concurrency", [2, 10])
async def test_concurrency_does_not_change_the_result(many: World, concurrency: int) -> None:
    assert await numbers(many.client.conversations.list(concurrency=concurrency)) == list(range(330))[::-1]


async def test_awaited_page_is_the_servers(many: World) -> None:
    found = await many.client.conversations.list(limit=10, offset=20)
    assert (len(found), found.has_more, found.total) == (10, True, 330)
    assert len(many.requests) == 1
    assert [item async for item in many.client.conversations.list(limit=10, offset=20)] == list(found)


# ---- One conversation


async def test_metadata_is_stored_replaced_and_cleared(world: World) -> None:
    conversations = world.client.conversations
    for metadata in ({"topic": "order", "n": [1, None, {"ü": "👟"}]}, {"other": 1.5}, {}, None):
        updated = await conversations.update(world.conversation_id, metadata=metadata)
        assert isinstance(updated, ConversationDetail)
        assert updated.metadata == metadata
        assert (await conversations.get(world.conversation_id)).metadata == metadata


@pytest.mark.parametrize(("message_limit", "count"), [(None, 50), (1, 1), (100, 100)])
async def test_get_returns_recent_messages(world: World, message_limit: int | None, count: int) -> None:
    detail = await world.client.conversations.get(world.conversation_id, message_limit=message_limit)
    assert bodies(detail.messages) == list(range(COUNT))[::-1][:count]
    assert detail.message_count == COUNT
    assert detail.last_message_at == second(COUNT - 1)
    assert detail.last_message_preview is None


@pytest.mark.parametrize("conversation_id", ["conv_0", "..", "../../sandbox/messages", "a/b?c#d", "%2e%2e", "é👟", " "])
async def test_unknown_id_is_not_found(world: World, conversation_id: str) -> None:
    calls: list[Callable[[AsyncConversations], Awaitable[object]]] = [
        lambda c: c.get(conversation_id),
        lambda c: c.update(conversation_id, metadata=None),
        lambda c: c.messages(conversation_id).page(),
        lambda c: anext(aiter(c.messages(conversation_id))),
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as caught:
            await call(world.client.conversations)
        assert caught.value.code == "NOT_FOUND"
        assert caught.value.message.startswith("There is no such conversation")


async def test_validation_error_names_the_field(world: World) -> None:
    with pytest.raises(UnprocessableEntityError, match="offset: ") as caught:
        await world.client.conversations.list(offset=10**30)
    assert caught.value.details[0]["field"] == "offset"


async def test_limit_holds_even_if_a_page_is_too_long() -> None:
    more = page(*(conversation(id=str(number)) for number in range(9)), has_more=True, total=9)
    client, script = client_of(ok(more), ok(page()))
    assert [item.id async for item in client.conversations.list(limit=3)] == ["0", "1", "2"]
    assert len(script.requests) == 1


# ---- Interrupted iterations


def history(request: httpx.Request) -> dict[str, Any]:
    """Return the page of a history of twenty messages that a request asks for."""
    query = dict(parse_qsl(urlsplit(str(request.url)).query))
    before = datetime.fromisoformat(query.get("before", "2026-01-01T00:00:00Z"))
    known = [number for number in range(20) if second(number) < before][::-1]
    found = known[: int(query["limit"])]
    items = [message(id=f"msg_{number}", body=str(number), receivedAt=second(number).isoformat()) for number in found]
    return page(*items, has_more=len(known) > len(found))


@pytest.mark.parametrize(
    ("failure", "error"),
    [(httpx.Response(500), ServerError), (httpx.Response(200, content=b"{"), ResponseDecodeError)],
)
@pytest.mark.parametrize("what", ["items", "pages"])
async def test_iterator_continues_after_an_error(failure: httpx.Response, error: type[Exception], what: str) -> None:
    count = 0

    async def every_second_fails(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        return failure if count % 2 == 0 else ok(history(request))

    client, script = client_of(every_second_fails, max_retries=0)
    pager = client.conversations.messages("conv_1", page_size=6)
    steps: AsyncIterator[Any] = aiter(pager) if what == "items" else pager.pages()
    found: list[Message] = []
    errors = 0
    while True:
        try:
            step = await anext(steps)
        except error:
            errors += 1
        except StopAsyncIteration:
            break
        else:
            found += [step] if what == "items" else step
    assert bodies(found) == list(range(20))[::-1]
    assert errors == len(script.targets) // 2 >= 3
    assert len(set(script.targets)) == len(script.targets) - errors  # what failed is requested again
    with pytest.raises(StopAsyncIteration):
        await anext(steps)


async def test_cancelled_step_loses_nothing() -> None:
    async def slowly(request: httpx.Request) -> httpx.Response:
        if len(script.requests) == 2:
            await anyio.sleep_forever()
        return ok(history(request))

    client, script = client_of(slowly)
    steps = aiter(client.conversations.messages("conv_1", page_size=6))
    found: list[Message] = []
    with anyio.move_on_after(0.05) as scope:
        while True:
            found.append(await anext(steps))
    assert scope.cancelled_caught
    found += [item async for item in steps]
    assert bodies(found) == list(range(20))[::-1]


async def test_abandoned_iteration_leaves_nothing_open(server: Server, long_conversation: str) -> None:
    gc.collect()
    before = open_sockets()
    async with AsyncClient(KEY, base_url=server.url) as client:
        async for _ in client.conversations.messages(long_conversation, page_size=10):
            break
        async for _ in client.conversations.messages(long_conversation, page_size=10).pages():
            break
        steps = aiter(client.conversations.messages(long_conversation, page_size=10))
        await anext(steps)
        del steps
        gc.collect()  # an abandoned generator would warn here, and a warning is an error
        assert len(open_sockets() - before) == 1  # one connection, kept for the next call
        await client.conversations.get(long_conversation)
        assert len(open_sockets() - before) == 1
    await anyio.lowlevel.checkpoint()
    assert open_sockets() <= before


# ---- Many


async def test_many_messages_take_constant_memory() -> None:
    async with AsyncClient(KEY, transport=CannedTransport(1, 2000)) as client:
        pager = client.conversations.messages("conv_1")
        async for _ in client.conversations.messages("conv_1", limit=400):
            pass  # creates what is created only once
        gc.collect()
        expected = 2000
        tracemalloc.start()
        try:
            async for item in pager:
                expected -= 1
                assert item.id == f"msg_conv_1_{expected:09}"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert expected == 0
    assert peak < 1024 * 1024  # a page at a time they take half of it, all at once 1.7 times as much
