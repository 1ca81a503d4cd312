"""The conversation endpoints: check the arguments, describe the call, send it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, overload

from agentphone import _state
from agentphone._http.requests import (
    RequestSpec,
    get_conversation,
    list_conversations,
    list_messages,
    update_conversation,
)
from agentphone._http.transport import Transport
from agentphone._paging.bounds import parse_bound
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.follow import FollowPaginator
from agentphone._paging.offset import OffsetPaginator
from agentphone._paging.polling import PollBackoff
from agentphone._paging.requests import MAX_CONVERSATIONS, MAX_MESSAGES, CursorRequest, MessagesRequest, OffsetRequest
from agentphone._paging.watch import WatchPaginator
from agentphone._state_block import AsyncState
from agentphone._streams import AsyncPager, AsyncStream, _PageStream, _PollingStream
from agentphone.models import Conversation, ConversationDetail, Message, NewMessage, Page

R = TypeVar("R")


T = TypeVar("T")


MAX_RECENT_MESSAGES = 100


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
            concurrency: How many requests may be in flight at once, from 1. With more than one, pages come in batches
                of up to eight times as many; if the list moved meanwhile, it is read a second time, with pages that
                overlap.

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

        def spec(request: OffsetRequest) -> RequestSpec[Page[Conversation]]:
            return list_conversations(limit=request.limit, offset=request.offset)

        def paginator() -> OffsetPaginator:
            return OffsetPaginator(limit=limit, offset=offset, page_size=page_size, concurrency=concurrency)

        first = spec(OffsetRequest(limit=min(limit or page_size, page_size), offset=offset))
        return AsyncPager(
            lambda: self._transport.send(first),
            lambda: _PageStream(paginator(), spec, self._transport, max_concurrency=concurrency),
        )

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
        return await self._transport.send(get_conversation(conversation_id, message_limit=message_limit))

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
        return await self._transport.send(update_conversation(conversation_id, metadata=metadata))

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
        upper, lower = parse_bound(before, "before"), parse_bound(after, "after")

        def spec(request: CursorRequest) -> RequestSpec[Page[Message]]:
            return _messages_call(conversation_id, request)

        def paginator() -> CursorPaginator:
            return CursorPaginator(
                limit=limit, before=upper, after=lower, oldest_first=order == "asc", page_size=page_size
            )

        first = spec(
            CursorRequest(
                limit=min(limit or page_size, page_size),
                before=upper.timestamp if upper else None,
                after=lower.timestamp if lower else None,
            )
        )
        return AsyncPager(lambda: self._transport.send(first), lambda: _PageStream(paginator(), spec, self._transport))

    @overload
    def state(self, conversation_id: str) -> AsyncState[dict[str, Any]]: ...
    @overload
    def state(self, conversation_id: str, cls: type[T]) -> AsyncState[T]: ...
    def state(self, conversation_id: str, cls: type[Any] = dict) -> AsyncState[Any]:
        """Open a conversation's metadata as a state: read at the beginning of a block, written at its end.

        The block gets an object to change. If it ends well and something changed, that is written; if it ends by an
        exception, also a cancellation, nothing is. Only what changed is laid over what was read: keys that the class
        does not know survive, inside nested classes too, and defaults are not written until they are changed. Such keys
        belong to the object that was read: it takes them along when it is moved, and a new one in its place (also from
        `attrs.evolve`) has none. Change the object itself; a new value for the variable is nothing to it.

        The API has no compare-and-set. When two blocks of one conversation overlap, the later write wins whole: it
        stores what it read with its own changes, and what the other one wrote meanwhile is lost, under other keys too.
        Where that can happen, let one worker at a time handle a conversation, or hold a lock of your own.

        If the write gets no answer (an `APIConnectionError` when the block ends), the new object may be stored all the
        same, whole; the same block once more would then begin with it.

        Source: `GET` and `PATCH /v1/conversations/{id}`, one request each.

        Args:
            conversation_id: Its id (`conv_...`).
            cls: An attrs class that is not frozen: a field `order_id` is the key `orderId`. Its types are held to
                strictly, and may be str, int, float, bool, datetime (ISO 8601), enums, Literal, list, dict with string
                keys, tuple and other attrs classes. A field with `init=False` is neither read nor written. By default a
                dict, with the API's keys.

        Returns:
            A context manager that gives the state; without metadata, the class's defaults or an empty dict.

        Raises:
            ValueError: The id is empty.
            TypeError: An argument is of another type, or the class has a field that JSON cannot hold.
        """
        _state.check_class(cls)
        return AsyncState(conversation_id, cls, self._transport)

    def follow(
        self,
        conversation_id: str,
        *,
        after: datetime | str | Message | None = None,
        poll_interval: float = 2.0,
        max_poll_interval: float = 30.0,
        overlap: float = 30.0,
    ) -> AsyncStream[Message]:
        """Read a conversation's messages as they arrive: an iteration without end, oldest first, each message once.

        It asks again and again. While nothing arrives the pauses grow from `poll_interval` to `max_poll_interval`; a
        message brings them back. An idle poll is one request. What passes is outlasted, however long it takes: no
        connection, 429 (for as long as `Retry-After` says), 5xx; `on_retry` and the log tell of it. Nothing runs
        between two steps of the iteration, so that it can be left at any time.

        Source: `GET /v1/conversations/{id}/messages`.

        Args:
            conversation_id: Its id (`conv_...`).
            after: Begin with what was received later than this: an aware `datetime`, an ISO 8601 string with an
                offset, or the message that was handled last, to go on exactly behind it. None for what arrives from now
                on: behind the newest message at the first step.
            poll_interval: Seconds from one poll to the next while messages arrive, more than 0.
            max_poll_interval: The longest such time, in seconds; never less than `poll_interval`.
            overlap: A message that the API shows later than others which were received after it still comes, if that is
                no more than so many seconds late; it comes late then, and once. From 0.

        Returns:
            An iterator. Nothing is sent before its first step. Its `aclose()` ends it, also where its next message is
            being waited for.

        Raises:
            NotFoundError: There is no such conversation, or the key has no access to it.
            APIStatusError: The API said no, and will again. The next step of the same iterator asks again.
            ResponseDecodeError: The answer is not what the API promises.
            PaginationError: The pages contradict each other, or one instant holds more messages than a page can.
            ValueError: An argument is out of its range, or an instant has no time or no offset.
            TypeError: An argument is of another type.
        """
        backoff = _poll_backoff(poll_interval, max_poll_interval)
        paginator = FollowPaginator(
            after=parse_bound(after, "after"),
            overlap=_seconds("overlap", overlap),
            clock=self._transport.clock,
            server_time=self._transport.server_time,
        )

        def spec(request: CursorRequest) -> RequestSpec[Page[Message]]:
            return _messages_call(conversation_id, request)

        spec(CursorRequest(limit=1))  # an id that cannot be is told here, not at the first step
        return _PollingStream(paginator, spec, self._transport, backoff)

    def watch(
        self,
        *,
        after: datetime | str | Message | None = None,
        poll_interval: float = 5.0,
        max_poll_interval: float = 60.0,
        overlap: float = 30.0,
    ) -> AsyncStream[NewMessage]:
        """Read the messages of all conversations as they arrive: an iteration without end, each message once.

        Each poll reads the head of the list, and those conversations that moved there; what it brings comes ordered by
        instant. An idle poll is one request. For all else it is as `follow`.

        What arrived since `after` is read whole before the first of it comes. The API's `messageCount` tells of
        messages that are shown late behind newer ones of the same conversation; where it is null, those are not seen.

        Source: `GET /v1/conversations`, `GET /v1/conversations/{id}/messages`.

        Args:
            after: Begin with what was received later than this: an aware `datetime`, an ISO 8601 string with an
                offset, or the message that was handled last, to go on exactly behind it. None for what arrives from now
                on: behind the newest message at the first step.
            poll_interval: Seconds from one poll to the next while messages arrive, more than 0.
            max_poll_interval: The longest such time, in seconds; never less than `poll_interval`.
            overlap: A message that the API shows later than others which were received after it still comes, if that is
                no more than so many seconds late; it comes late then, and once. From 0.

        Returns:
            An iterator of pairs, `conversation, message`. Nothing is sent before its first step. Its `aclose()` ends
            it, also where its next message is being waited for.

        Raises:
            APIStatusError: The API said no, and will again. The next step of the same iterator asks again.
            ResponseDecodeError: The answer is not what the API promises.
            PaginationError: The pages contradict each other, or one instant holds more messages than a page can.
            ValueError: An argument is out of its range, or an instant has no time or no offset.
            TypeError: An argument is of another type.
        """
        backoff = _poll_backoff(poll_interval, max_poll_interval)
        paginator = WatchPaginator(
            after=parse_bound(after, "after"),
            overlap=_seconds("overlap", overlap),
            clock=self._transport.clock,
            server_time=self._transport.server_time,
        )

        def spec(request: OffsetRequest | MessagesRequest) -> RequestSpec[Page[Any]]:
            if isinstance(request, OffsetRequest):
                return list_conversations(limit=request.limit, offset=request.offset)
            return _messages_call(request.conversation_id, request.cursor)

        return _PollingStream(paginator, spec, self._transport, backoff)


def _messages_call(conversation_id: str, request: CursorRequest) -> RequestSpec[Page[Message]]:
    return list_messages(conversation_id, limit=request.limit, before=request.before, after=request.after)


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


def _seconds(name: str, value: float, *, may_be_zero: bool = True) -> timedelta:
    """Refuse what is no length of time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not 0 <= value < 1e9 or (value == 0 and not may_be_zero):
        raise ValueError(f"{name} is a number of seconds {'from' if may_be_zero else 'above'} 0, not {value}")
    return timedelta(seconds=value)


def _poll_backoff(poll_interval: float, max_poll_interval: float) -> PollBackoff:
    _seconds("poll_interval", poll_interval, may_be_zero=False)
    _seconds("max_poll_interval", max_poll_interval)
    return PollBackoff(poll_interval, max(poll_interval, max_poll_interval))
