"""What type checkers see of `AsyncClient`. Nobody runs it: mypy reads it in the tests and in `.ci/run`, pyright there.

An `assert_type` says that a type is exactly this, and an ignore that a line is wrong: one that nothing is wrong with
would itself be an error.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict, assert_type

import attrs
import httpx
import pydantic

from agentphone import (
    AsyncClient,
    AsyncConversations,
    AsyncMessages,
    AsyncPager,
    AsyncState,
    AsyncStream,
    Conversation,
    ConversationDetail,
    Message,
    NewMessage,
    Page,
    SentMessage,
    SentReaction,
)
from agentphone.export import Progress, Result, export
from agentphone.webhooks import Event, MessageEvent


async def clients(transport: httpx.AsyncBaseTransport) -> None:
    """Make, derive and close clients."""
    client = AsyncClient("key", base_url="sandbox:", timeout=httpx.Timeout(5), deadline=None, transport=transport)
    assert_type(client, AsyncClient)
    assert_type(client.with_options(timeout=None, deadline=5, max_retries=0), AsyncClient)
    assert_type(client.conversations, AsyncConversations)
    assert_type(await client.aclose(), None)
    async with AsyncClient() as entered:
        assert_type(entered, AsyncClient)
    async with client.with_options(deadline=1.5) as derived:
        assert_type(derived, AsyncClient)

    AsyncClient(5)  # type: ignore[arg-type]
    AsyncClient(timout=5)  # type: ignore[call-arg]
    client.with_options(max_retries="3")  # type: ignore[arg-type]
    client.close()  # type: ignore[attr-defined]
    client.conversations = client.conversations  # type: ignore[misc]
    with client:  # type: ignore[attr-defined]
        pass


async def lists(client: AsyncClient) -> None:
    """List conversations."""
    pager = client.conversations.list(limit=3, offset=1, page_size=50, concurrency=2)
    assert_type(pager, AsyncPager[Conversation])
    assert_type(client.conversations.list(), AsyncPager[Conversation])
    assert_type(aiter(pager), AsyncIterator[Conversation])
    assert_type(pager.pages(), AsyncIterator[Page[Conversation]])
    assert_type(await pager, Page[Conversation])
    assert_type(await pager.page(), Page[Conversation])
    async for conversation in pager:
        assert_type(conversation, Conversation)
    async for page in pager.pages():
        assert_type(page, Page[Conversation])
        assert_type(page[0], Conversation)
        assert_type(page.data, tuple[Conversation, ...])
        assert_type(page.total, int | None)
        for conversation in page:
            assert_type(conversation, Conversation)
    assert_type([conversation.id async for conversation in pager], list[str])

    _ = pager.total  # type: ignore[attr-defined]
    _ = pager[0]  # type: ignore[index]
    len(pager)  # type: ignore[arg-type]
    for _ in pager:  # type: ignore[attr-defined]
        pass
    client.conversations.list(limit="3")  # type: ignore[arg-type]
    client.conversations.list(page_size=None)  # type: ignore[arg-type]
    client.conversations.list(order="desc")  # type: ignore[call-arg]
    for _ in pager:  # type: ignore[attr-defined]
        pass


async def one(client: AsyncClient, metadata: Mapping[str, Any], created: datetime) -> None:
    """Get and update a conversation."""
    detail = await client.conversations.get("conv_1", message_limit=20)
    assert_type(detail, ConversationDetail)
    assert_type(detail.messages, tuple[Message, ...])
    assert_type(detail.created_at, datetime | None)
    assert_type(await client.conversations.get("conv_1"), ConversationDetail)
    assert_type(await client.conversations.update("conv_1", metadata=metadata), ConversationDetail)
    assert_type(await client.conversations.update("conv_1", metadata={"topic": "order"}), ConversationDetail)
    assert_type(await client.conversations.update("conv_1", metadata=None), ConversationDetail)

    await client.conversations.get()  # type: ignore[call-arg]
    await client.conversations.get(5)  # type: ignore[arg-type]
    await client.conversations.update("conv_1")  # type: ignore[call-arg]
    await client.conversations.update("conv_1", metadata="order")  # type: ignore[arg-type]
    await client.conversations.update("conv_1", metadata={1: "order"})  # type: ignore[dict-item]
    detail.metadata = None  # type: ignore[misc]


async def messages(client: AsyncClient, instant: datetime, last: Message) -> None:
    """Read messages."""
    pager = client.conversations.messages("conv_1", before=instant, after="2025-06-30T12:00:00Z", order="asc")
    assert_type(pager, AsyncPager[Message])
    assert_type(client.conversations.messages("conv_1", before=last, page_size=5, limit=None), AsyncPager[Message])
    assert_type(await pager, Page[Message])
    async for message in pager:
        assert_type(message, Message)
        assert_type(message.received_at, datetime)
        assert_type(message.body, str | None)
    async for page in pager.pages():
        assert_type(page, Page[Message])

    client.conversations.messages()  # type: ignore[call-arg]
    client.conversations.messages("conv_1", order="up")  # type: ignore[arg-type]
    client.conversations.messages("conv_1", after=5)  # type: ignore[arg-type]


async def live(client: AsyncClient, instant: datetime, last: Message) -> None:
    """Follow one conversation, watch them all."""
    stream = client.conversations.follow("conv_1", after=last, poll_interval=1, max_poll_interval=10.0, overlap=0)
    assert_type(stream, AsyncStream[Message])
    assert_type(await anext(stream), Message)
    async for message in stream:
        assert_type(message, Message)
    await stream.aclose()
    async for conversation, message in client.conversations.watch(after=instant):
        assert_type(conversation, Conversation)
        assert_type(message, Message)
    async for new in client.conversations.watch(after="2025-06-30T12:00:00Z"):
        assert_type(new, NewMessage)
        assert_type(new.conversation, Conversation)

    client.conversations.follow()  # type: ignore[call-arg]
    client.conversations.follow("conv_1", after=5)  # type: ignore[arg-type]
    client.conversations.watch("conv_1")  # type: ignore[call-arg]


async def sends(client: AsyncClient, conversation: Conversation, message: Message, event: MessageEvent) -> None:
    """Send messages and reactions."""
    assert_type(client.messages, AsyncMessages)
    sent = await client.messages.send("Hello", to="+15555550110", number_id="num_1", media_urls=["https://a.example"])
    assert_type(sent, SentMessage)
    assert_type(sent.status, str | None)
    assert_type(
        await client.messages.send("", recipients=("+1", "+2"), agent_id="agt_1", reply_to=message), SentMessage
    )
    assert_type(await client.messages.react(message, "love"), SentReaction)
    assert_type(await client.conversations.reply(conversation, "Hello", confirm=5, reply_to=message.id), SentMessage)
    assert_type(await client.conversations.reply("conv_1", "Hello"), SentMessage)
    assert_type(await client.conversations.reply(event, "Hello"), SentMessage)
    assert_type(await client.conversations.reply(NewMessage(conversation, message), "Hello"), SentMessage)
    assert_type(await client.conversations.typing(event), bool)

    await client.messages.send("Hello", to=5)  # type: ignore[arg-type]
    await client.messages.send("Hello", "+15555550110")  # type: ignore[call-arg]
    await client.conversations.reply(message, "Hello")  # type: ignore[arg-type]
    await client.conversations.reply(conversation, "Hello", idempotency_key="1")  # type: ignore[call-arg]


@attrs.define
class OrderState:
    """A state as a class."""

    order_id: str = ""


class DictState(TypedDict, total=False):
    """A state as a TypedDict."""

    order_id: str


class PydanticState(pydantic.BaseModel):
    """A state as a pydantic model."""

    order_id: str = ""


async def states(client: AsyncClient, event: Event) -> None:
    """Open states."""
    assert_type(client.conversations.state("conv_1"), AsyncState[dict[str, Any]])
    assert_type(client.conversations.state("conv_1", OrderState), AsyncState[OrderState])
    assert_type(client.conversations.state("conv_1", DictState), AsyncState[DictState])
    assert_type(client.conversations.state("conv_1", PydanticState), AsyncState[PydanticState])
    async with client.conversations.state("conv_1") as plain:
        assert_type(plain, dict[str, Any])
    async with client.conversations.state("conv_1", cls=OrderState) as state:
        assert_type(state, OrderState)
        state.order_id = 5  # type: ignore[assignment]
    assert_type(event.state(), dict[str, Any])
    assert_type(event.state(OrderState), OrderState)

    client.conversations.state()  # type: ignore[call-overload]
    client.conversations.state(5)  # type: ignore[call-overload]
    client.conversations.state("conv_1", OrderState())  # type: ignore[call-overload]


async def exports(client: AsyncClient, instant: datetime) -> None:
    """Export an account."""

    def show(progress: Progress) -> None:
        assert_type(progress.messages_total, int | None)

    result = await export(client, "backup", format="csv", concurrency=2, since=instant)
    assert_type(result, Result)
    assert_type(result.messages_path, Path)
    assert_type(await export(client, "backup", since="last", on_progress=show), Result)
    assert_type(asyncio.create_task(export(client, Path("backup"))), asyncio.Task[Result])

    export(client, "backup")  # type: ignore[unused-coroutine]
    export(client, "backup", format="xml")  # type: ignore[call-overload]
    export(client)  # type: ignore[call-overload]
