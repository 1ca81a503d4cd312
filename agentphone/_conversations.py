"""The conversations: one async method for each endpoint, and the pager that walks the lists.

Arguments are checked here, before anything is sent; what goes over the wire is `_wire`'s, what to ask next is
`_pagination`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from agentphone import _wire
from agentphone._pagination import (
    MAX_CONVERSATIONS,
    MAX_MESSAGES,
    CursorRequest,
    CursorWalk,
    OffsetRequest,
    OffsetWalk,
    Walk,
    read_bound,
)
from agentphone._portal import Batched
from agentphone._transport import Transport
from agentphone.models import Conversation, ConversationDetail, Message, Page

R = TypeVar("R")
T = TypeVar("T")

MAX_RECENT_MESSAGES = 100


class AsyncPager(Generic[T]):
    """A list that has not been read yet: iterate over its items or its pages, or await its first page.

    Making one sends nothing. Each `async for` is a new walk from the start, and asks for a page when it needs it.
    """

    def __init__(self, first: Callable[[], Awaitable[Page[T]]], walk: Callable[[], AsyncIterator[Page[T]]]) -> None:
        self._first = first
        self._walk = walk

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the items, each once.

        Raises:
            PaginationError: The pages contradict each other, or one instant holds more messages than a page can.
            AgentPhoneError: A page could not be read; the next step of the same iterator asks for it again.
            RuntimeError: Two tasks or threads stepped the same iterator at once; nothing is lost by it.
        """
        return _Items(self._walk())

    def pages(self) -> AsyncIterator[Page[T]]:
        """Iterate over the items a page at a time.

        Returns:
            An iterator of pages as the walk hands them out, each item once. Such a page may hold other items than the
            server's page did; `has_more` says whether the walk goes on.

        Raises:
            PaginationError: The pages contradict each other, or one instant holds more messages than a page can.
            AgentPhoneError: A page could not be read; the next step of the same iterator asks for it again.
            RuntimeError: Two tasks or threads stepped the same iterator at once; nothing is lost by it.
        """
        return self._walk()

    async def page(self) -> Page[T]:
        """Read the first page as the server gives it, with one request.

        Returns:
            The page, in the server's order.

        Raises:
            APIConnectionError: No whole answer came.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
        """
        return await self._first()

    def __await__(self) -> Generator[Any, Any, Page[T]]:
        return self.page().__await__()


class AsyncConversations:
    """The conversations of the project that the API key belongs to. Reached as `client.conversations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, *, limit: int | None = None, offset: int = 0, page_size: int = 100, concurrency: int = 1
    ) -> AsyncPager[Conversation]:
        """List the conversations, most recent activity first.

        Without `limit` and `offset`, every conversation that is there from the start of an iteration to its end comes
        exactly once, however the list moves meanwhile, in the order in which the API listed it; what moved out of the
        way comes late. With either, nothing is repeated. A list of N pages that stands still takes N + 1 requests at
        most.

        Source: `GET /v1/conversations`.

        Args:
            limit: How many to give in all, from 1; None for every one. 250 takes three requests.
            offset: How many to skip, from 0.
            page_size: How many one request asks for, 1 to 100.
            concurrency: How many requests may be in flight at once, from 1. If the list moved while several were, it is
                read a second time, with pages that overlap.

        Returns:
            A pager: iterate over it, or await it for one page. Nothing is sent before.

        Raises:
            ValueError: An argument is out of its range.
            TypeError: An argument is not an integer.
        """
        _check_count("limit", limit, optional=True)
        _check_count("offset", offset, least=0)
        _check_count("page_size", page_size, most=MAX_CONVERSATIONS)
        _check_count("concurrency", concurrency)

        def call(request: OffsetRequest) -> _wire.Call[Page[Conversation]]:
            return _wire.list_conversations(limit=request.limit, offset=request.offset)

        def walk() -> OffsetWalk:
            return OffsetWalk(limit=limit, offset=offset, page_size=page_size, concurrency=concurrency)

        first = call(OffsetRequest(limit=min(limit or page_size, page_size), offset=offset))
        return AsyncPager(lambda: self._transport.send(first), lambda: _Pages(walk(), call, self._transport))

    async def get(self, conversation_id: str, *, message_limit: int | None = None) -> ConversationDetail:
        """Get a conversation with its recent messages.

        Source: `GET /v1/conversations/{id}`.

        Args:
            conversation_id: Its id (`conv_...`).
            message_limit: How many recent messages to include, 1 to 100; None for the API's default, 50.

        Returns:
            The conversation. `last_message_preview` is None: this endpoint does not give it.

        Raises:
            NotFoundError: There is no such conversation, or the key has no access to it.
            APIConnectionError: No whole answer came.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
            ValueError: The id is empty, or `message_limit` out of its range.
            TypeError: An argument is of another type.
        """
        _check_count("message_limit", message_limit, most=MAX_RECENT_MESSAGES, optional=True)
        return await self._transport.send(_wire.get_conversation(conversation_id, message_limit=message_limit))

    async def update(self, conversation_id: str, *, metadata: Mapping[str, Any] | None) -> ConversationDetail:
        """Replace a conversation's metadata: the state that comes back in every webhook as `conversationState`.

        The stored object is replaced whole, not merged. Sending it twice leaves what sending it once leaves, so a call
        that failed half-way is tried again.

        Source: `PATCH /v1/conversations/{id}`.

        Args:
            conversation_id: Its id (`conv_...`).
            metadata: What to store: a dict with string keys whose values are JSON. None clears it.

        Returns:
            The updated conversation with its recent messages.

        Raises:
            NotFoundError: There is no such conversation, or the key has no access to it.
            APIConnectionError: No whole answer came.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
            ValueError: The id is empty, or the metadata holds what JSON cannot carry (NaN, itself).
            TypeError: The metadata holds a type that JSON does not have; the text names where.
        """
        return await self._transport.send(_wire.update_conversation(conversation_id, metadata=metadata))

    def messages(
        self,
        conversation_id: str,
        *,
        limit: int | None = None,
        before: datetime | str | Message | None = None,
        after: datetime | str | Message | None = None,
        order: Literal["asc", "desc"] = "desc",
        page_size: int = 200,
    ) -> AsyncPager[Message]:
        """Read a conversation's messages, between two instants if wanted.

        Every message between the bounds that is there when the walk passes it comes exactly once, in the order of
        `(received_at, id)`, however many share an instant. A history of N pages takes N + 2 requests at most; with
        `order="asc"` 2N + 4, if the API takes `after` alone to mean the newest page.

        Source: `GET /v1/conversations/{id}/messages`.

        Args:
            conversation_id: Its id (`conv_...`).
            limit: How many to give in all, from 1; None for every one.
            before: Give what was received earlier than this: an aware `datetime`, an ISO 8601 string with an offset, or
                a message to go on exactly behind it. A string or `datetime` is compared with instants as the API prints
                them.
            after: Give what was received later than this; the same forms.
            order: `"desc"` for newest first, `"asc"` for oldest first.
            page_size: How many one request asks for, 1 to 200.

        Returns:
            A pager: iterate over it, or await it for one page. Nothing is sent before.

        Raises:
            ValueError: An argument is out of its range, or an instant has no time or no offset.
            TypeError: An argument is of another type.
        """
        _check_count("limit", limit, optional=True)
        _check_count("page_size", page_size, most=MAX_MESSAGES)
        if order not in ("asc", "desc"):
            raise ValueError(f'order is "asc" or "desc", not {order!r}')
        upper, lower = read_bound(before, "before"), read_bound(after, "after")

        def call(request: CursorRequest) -> _wire.Call[Page[Message]]:
            return _wire.list_messages(conversation_id, limit=request.limit, before=request.before, after=request.after)

        def walk() -> CursorWalk:
            return CursorWalk(limit=limit, before=upper, after=lower, oldest_first=order == "asc", page_size=page_size)

        first = call(
            CursorRequest(
                limit=min(limit or page_size, page_size),
                before=upper.instant if upper else None,
                after=lower.instant if lower else None,
            )
        )
        return AsyncPager(lambda: self._transport.send(first), lambda: _Pages(walk(), call, self._transport))


class _Pages(Batched[Page[T]]):
    """Drive one walk: ask for what it wants, hand it the answers. Nothing runs between two steps."""

    def __init__(self, walk: Walk[R, T], call: Callable[[R], _wire.Call[Page[T]]], transport: Transport) -> None:
        super().__init__()
        self._walk = walk
        self._call = call
        self._transport = transport
        self._is_at_work = False

    async def next_batch(self) -> tuple[Page[T]]:
        if self._is_at_work:  # two answers to one request would pass for the answers to two
            raise RuntimeError(
                "This iterator is waiting for a page already, for another task or thread. Step it from one at a time,"
                " or give each an iterator of its own."
            )
        self._is_at_work = True
        try:
            return await self._next_page()
        finally:
            self._is_at_work = False

    async def _next_page(self) -> tuple[Page[T]]:
        while requests := self._walk.next_requests():
            pages = await self._transport.send_all([self._call(request) for request in requests])
            items = tuple(self._walk.receive(pages))
            if items or self._walk.is_over:
                return (Page(data=items, has_more=not self._walk.is_over, total=pages[-1].total),)
        raise StopAsyncIteration


class _Items(Batched[T]):
    """Give the items of the pages one by one."""

    def __init__(self, pages: AsyncIterator[Page[T]]) -> None:
        super().__init__()
        self._pages = pages

    async def next_batch(self) -> tuple[T, ...]:
        return (await anext(self._pages)).data


def _check_count(
    name: str, value: int | None, *, least: int = 1, most: int | None = None, optional: bool = False
) -> None:
    """Refuse what is not a whole number of things; None only where the caller may leave it open."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an integer, not {value!r}")
    if value < least or (most is not None and value > most):
        upto = "or more" if most is None else f"to {most}"
        raise ValueError(f"{name} is {least} {upto}, not {value}")
