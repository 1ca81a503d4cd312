"""The conversation endpoints: check the arguments, describe the request, send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, overload

from agentphone import _state
from agentphone._checks import check_integer, check_seconds
from agentphone._events import MessageEvent
from agentphone._http.requests import (
    RequestSpec,
    get_conversation,
    list_conversations,
    list_messages,
    start_typing,
    update_conversation,
)
from agentphone._http.transport import Transport
from agentphone._paging.bounds import parse_bound
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.follow import FollowPaginator
from agentphone._paging.offset import OffsetPaginator
from agentphone._paging.polling import PollBackoff
from agentphone._paging.requests import MAX_CONVERSATIONS, MAX_MESSAGES, CursorRequest, MessagesRequest, OffsetRequest
from agentphone._paging.watch import GONE, WatchPaginator
from agentphone._replies import address_of, send_reply
from agentphone._state_block import AsyncState
from agentphone._streams import AsyncPager, AsyncStream, PageStream, PollingStream
from agentphone.errors import BadRequestError
from agentphone.models import Conversation, ConversationDetail, Cursor, Message, NewMessage, Page, SentMessage

T = TypeVar("T")

MAX_RECENT_MESSAGES = 100
MAX_SECONDS = 1e9
"""The longest interval or overlap: 31 years."""


class AsyncConversations:
    """The conversations of the API key's project, available as `client.conversations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, *, limit: int | None = None, offset: int = 0, page_size: int = 100, concurrency: int = 1
    ) -> AsyncPager[Conversation]:
        """List the conversations, most recent activity first.

        Without `limit` and `offset`, an iteration yields every conversation that exists throughout it exactly once, in
        the order in which the API lists them, even if the list changes meanwhile; a conversation that changed its place
        may come later. With `limit` or `offset`, no conversation is repeated. A list of N pages that does not change
        takes at most N + 1 requests; one that changes may be read again, up to three times in all.

        Source: `GET /v1/conversations`.

        Args:
            limit: The maximum number of conversations, at least 1; None for all of them. 250 takes three requests.
            offset: The number of conversations to skip, from 0.
            page_size: The number of conversations per request, 1 to 100.
            concurrency: The maximum number of requests in flight at once, at least 1. Above 1, pages are requested in
                batches of up to eight times as many. If the list changed meanwhile, it is read a second time, with
                overlapping pages.

        Returns:
            A pager: iterate over it, or await it for one page. Nothing is sent before.

        Raises:
            ValueError: An argument is out of range.
            TypeError: An argument is not an integer.
        """
        check_integer("limit", limit, minimum=1, optional=True)
        check_integer("offset", offset, minimum=0)
        check_integer("page_size", page_size, minimum=1, maximum=MAX_CONVERSATIONS)
        check_integer("concurrency", concurrency, minimum=1)

        def spec(request: OffsetRequest) -> RequestSpec[Page[Conversation]]:
            return list_conversations(limit=request.limit, offset=request.offset)

        def pages() -> PageStream[OffsetRequest, Conversation]:
            paginator = OffsetPaginator(limit=limit, offset=offset, page_size=page_size, concurrency=concurrency)
            return PageStream(paginator, spec, self._transport, max_concurrency=concurrency)

        first = spec(OffsetRequest(limit=min(limit or page_size, page_size), offset=offset))
        return AsyncPager("list", lambda: self._transport.send(first), pages)

    async def get(self, conversation_id: str, *, message_limit: int | None = None) -> ConversationDetail:
        """Get a conversation with its recent messages.

        Source: `GET /v1/conversations/{id}`.

        Args:
            conversation_id: The conversation's id (`conv_...`).
            message_limit: The maximum number of recent messages, 1 to 100; None for the API's default, 50.

        Returns:
            The conversation. Its `last_message_preview` is None, because this endpoint does not return it.

        Raises:
            NotFoundError: The conversation does not exist, or the key has no access to it.
            APIConnectionError: No complete response was received.
            APIStatusError: The API returned an error status.
            ResponseDecodeError: The response does not match the API's schema.
            ClientClosedError: The client was closed, before or during the call.
            ValueError: The id is empty or has control characters, or `message_limit` is out of range.
            TypeError: An argument has the wrong type.
        """
        check_integer("message_limit", message_limit, minimum=1, maximum=MAX_RECENT_MESSAGES, optional=True)
        return await self._transport.send(get_conversation(conversation_id, message_limit=message_limit))

    async def update(self, conversation_id: str, *, metadata: Mapping[str, Any] | None) -> ConversationDetail:
        """Replace a conversation's metadata: its state, which every webhook carries as `conversationState`.

        The whole object is replaced, nothing is merged. Replacing is idempotent, so a failed call is retried.

        Source: `PATCH /v1/conversations/{id}`.

        Args:
            conversation_id: The conversation's id (`conv_...`).
            metadata: The new metadata: a dict with string keys and JSON values. None clears it.

        Returns:
            The updated conversation with its recent messages.

        Raises:
            NotFoundError: The conversation does not exist, or the key has no access to it.
            APIConnectionError: No complete response was received.
            APIStatusError: The API returned an error status.
            ResponseDecodeError: The response does not match the API's schema.
            ClientClosedError: The client was closed, before or during the call.
            ValueError: The id is empty or has control characters, or JSON cannot represent a value of the metadata
                (NaN, a cycle).
            TypeError: The metadata contains a type that JSON does not have; the error names its path.
        """
        return await self._transport.send(update_conversation(conversation_id, metadata=metadata))

    async def reply(
        self,
        conversation: Conversation | NewMessage | MessageEvent | str,
        body: str = "",
        *,
        media_urls: Sequence[str] = (),
        reply_to: Message | str | None = None,
        send_style: str | None = None,
        confirm: float = 10.0,
    ) -> SentMessage:
        """Send a message in a conversation, from its own number to its person or group. It is never sent twice.

        It is retried only if the API certainly has not accepted it: no connection could be made, or the response was a
        429. If the outcome is unclear, the conversation's newest messages are read until the reply is among them: an
        outbound message with the same text and media, no older than the attempt. A call that is cancelled may have sent
        it. The same words, sent by another process in the ten seconds before, pass for it, unless you give the id.

        Source: `POST /v1/messages`, `GET /v1/conversations/{id}` for an id, and `GET .../messages` to look for a reply.

        Args:
            conversation: The conversation, what `watch` yielded, a webhook's event, or the conversation's id, which
                takes one request more.
            body: The text; it may be empty with media. See `messages.send`.
            media_urls: Up to 20 `https://` URLs of media.
            reply_to: The message that this one answers, or its id; it has no effect on SMS.
            send_style: An effect of iMessage: `"confetti"`, `"slam"`, ...; it has no effect on SMS.
            confirm: How long to look for a reply whose outcome is unclear, in seconds; 0 not to look.

        Returns:
            The message as the API accepted it, or as it was found.

        Raises:
            SendUnconfirmedError: It may have been sent, and was not found: do not send it again before you have looked.
            APIConnectionError: The API could not be reached. Nothing was sent.
            DeadlineExceededError: The client's `deadline` ended before anything was sent.
            APIStatusError: The API rejected it. Nothing was sent.
            ClientClosedError: The client is closed. Nothing was sent.
            ValueError: There is nothing to send, or an argument is out of range.
            TypeError: An argument has the wrong type.
        """
        check_seconds("confirm", confirm, allow_zero=True, maximum=MAX_SECONDS)
        return await send_reply(
            self._transport,
            conversation,
            body,
            media_urls=media_urls,
            reply_to=reply_to,
            send_style=send_style,
            confirm=confirm,
        )

    async def typing(self, conversation: Conversation | NewMessage | MessageEvent | str) -> bool:
        """Show the person that the agent is typing, where the channel can (iMessage). One attempt, no retries.

        Source: `POST /v1/conversations/{id}/typing`.

        Args:
            conversation: The conversation, what `watch` yielded, a webhook's event, or the conversation's id.

        Returns:
            False if the channel cannot show it (400).

        Raises:
            NotFoundError: The conversation does not exist, or the key has no access to it.
            AgentPhoneError: The request failed in another way, as that of `get` can.
            ValueError: The id is empty.
            TypeError: An argument has the wrong type.
        """
        spec = start_typing(conversation if isinstance(conversation, str) else address_of(conversation).conversation_id)
        try:
            await self._transport.send(spec)
        except BadRequestError:
            return False
        return True

    def messages(
        self,
        conversation_id: str,
        *,
        limit: int | None = None,
        before: datetime | str | Message | Cursor | None = None,
        after: datetime | str | Message | Cursor | None = None,
        order: Literal["asc", "desc"] = "desc",
        page_size: int = 200,
    ) -> AsyncPager[Message]:
        """Read a conversation's messages, optionally between two timestamps.

        An iteration yields every message between the bounds exactly once, in the order of `(received_at, id)`, even if
        many share one timestamp. A history of N pages takes at most N + 2 requests; with `order="asc"` at most 2N + 4,
        if the API returns the newest page for `after` alone, and about 30 more to begin if there is a `limit`.

        Source: `GET /v1/conversations/{id}/messages`.

        Args:
            conversation_id: The conversation's id (`conv_...`).
            limit: The maximum number of messages, at least 1; None for all of them.
            before: Only messages received before this: an aware `datetime`, an ISO 8601 string with an offset, or a
                `Message` or its `Cursor`, to continue exactly where it was. A string or `datetime` is compared with the
                timestamps as the API returns them.
            after: Only messages received after this; the same types.
            order: `"desc"` for newest first, `"asc"` for oldest first.
            page_size: The number of messages per request, 1 to 200.

        Returns:
            A pager: iterate over it, or await it for one page. Nothing is sent before.

        Raises:
            ValueError: An argument is out of range, or a timestamp has no time or no offset.
            TypeError: An argument has the wrong type.
        """
        check_integer("limit", limit, minimum=1, optional=True)
        check_integer("page_size", page_size, minimum=1, maximum=MAX_MESSAGES)
        if order not in ("asc", "desc"):
            raise ValueError(f'order must be "asc" or "desc", got {order!r}')
        upper, lower = parse_bound(before, "before"), parse_bound(after, "after")

        def spec(request: CursorRequest) -> RequestSpec[Page[Message]]:
            return list_messages(conversation_id, limit=request.limit, before=request.before, after=request.after)

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
        return AsyncPager(
            "messages", lambda: self._transport.send(first), lambda: PageStream(paginator(), spec, self._transport)
        )

    @overload
    def state(self, conversation_id: str) -> AsyncState[dict[str, Any]]: ...
    @overload
    def state(self, conversation_id: str, cls: type[T]) -> AsyncState[T]: ...
    def state(self, conversation_id: str, cls: type[Any] = dict) -> AsyncState[Any]:
        """Open a conversation's metadata as typed state: it is read when the block begins, and written when it ends.

        Change the object that the block receives; assigning a new object to the variable has no effect. If the block
        ends normally and the state has changed, it is written. After an exception or a cancellation nothing is written.

        Changes are merged into the object that was read. Keys that the class does not know are kept, also inside nested
        classes, and defaults are not written until they are changed. Unknown keys belong to the nested object that was
        read: they move with it, and an object that replaces it (also one from `attrs.evolve`) does not have them.

        The API has no compare-and-set. If two blocks of one conversation overlap, the later write wins: it stores what
        it read with its own changes, and the changes of the other block are lost, under other keys too. To prevent
        that, let only one worker at a time handle a conversation, or hold a lock.

        If the write fails with an `APIConnectionError`, the new state may have been stored nevertheless, as a whole. A
        block that is run again then starts from it.

        Source: `GET` and `PATCH /v1/conversations/{id}`, one request each.

        Args:
            conversation_id: The conversation's id (`conv_...`).
            cls: An attrs class, a dataclass or a pydantic model that is not frozen, or a TypedDict: a field `order_id`
                is the key `orderId`. By default a dict with the API's keys. Field types are checked strictly, and may
                be str, int, float, bool, datetime (ISO 8601), enums, Literal, list, dict with string keys, tuple and
                other such classes. A field with `init=False` is neither read nor written. A pydantic model validates
                (in strict mode) and serializes itself, with the types and the aliases that it has.

        Returns:
            A context manager for the state. Without metadata the state is an instance with the class's defaults, or an
            empty dict.

        Raises:
            ValueError: The id is empty or has control characters.
            TypeError: An argument has the wrong type, or the class has a field that JSON cannot represent.
        """
        _state.check_class(cls)
        return AsyncState(conversation_id, cls, self._transport)

    def follow(
        self,
        conversation_id: str,
        *,
        after: datetime | str | Message | Cursor | None = None,
        poll_interval: float = 2.0,
        max_poll_interval: float = 30.0,
        overlap: float = 30.0,
    ) -> AsyncStream[Message]:
        """Follow a conversation: yield its new messages, oldest first, each once. The iteration never ends.

        It polls. The interval grows from `poll_interval` to `max_poll_interval` while nothing arrives; a message resets
        it. An idle poll is one request. Connection failures, 429s and 5xx responses are retried until they clear, and
        reported through `on_retry` and the log; a `Retry-After` of up to an hour is respected. Nothing runs between two
        steps of the iteration, so it can be abandoned at any time.

        Source: `GET /v1/conversations/{id}/messages`.

        Args:
            conversation_id: The conversation's id (`conv_...`).
            after: Start with the messages received after this: an aware `datetime`, an ISO 8601 string with an offset,
                or the `Message` that was handled last, or its `Cursor`, to continue exactly after it. None for the
                messages that arrive after the first step.
            poll_interval: Seconds between polls while messages arrive, more than 0.
            max_poll_interval: The longest interval, in seconds; at least `poll_interval` is used.
            overlap: How late a message may be published, in seconds from 0. One that the API publishes up to this much
                later than messages with a newer timestamp is still yielded, once, out of order.

        Returns:
            An iterator. Nothing is sent before its first step. `aclose()` ends it, also while it is waiting for a
            message.

        Raises:
            NotFoundError: The conversation does not exist, or the key has no access to it.
            APIStatusError: The API returned an error that will not clear by itself. The next step of the same iterator
                tries again.
            APIConnectionError: The certificate is not trusted, or a proxy rejects the connection.
            ResponseDecodeError: The response does not match the API's schema.
            PaginationError: The pages contradict each other, or more messages share one timestamp than fit in a page.
            ClientClosedError: The client was closed.
            RuntimeError: Two tasks or threads stepped the iterator at once, or an exception interrupted a step.
            ValueError: An argument is out of range, or a timestamp has no time or no offset.
            TypeError: An argument has the wrong type.
        """
        check_seconds("poll_interval", poll_interval, maximum=MAX_SECONDS)
        check_seconds("max_poll_interval", max_poll_interval, allow_zero=True, maximum=MAX_SECONDS)
        check_seconds("overlap", overlap, allow_zero=True, maximum=MAX_SECONDS)
        backoff = PollBackoff(poll_interval, max(poll_interval, max_poll_interval))
        paginator = FollowPaginator(
            after=parse_bound(after, "after"),
            overlap=timedelta(seconds=overlap),
            clock=self._transport.clock,
            server_time=self._transport.server_time,
        )

        def spec(request: CursorRequest) -> RequestSpec[Page[Message]]:
            return list_messages(conversation_id, limit=request.limit, before=request.before, after=request.after)

        spec(CursorRequest(limit=1))  # raises here for an invalid id, not at the first step
        return PollingStream("follow", paginator, spec, self._transport, backoff)

    def watch(
        self,
        *,
        after: datetime | str | Message | Cursor | None = None,
        poll_interval: float = 5.0,
        max_poll_interval: float = 60.0,
        overlap: float = 30.0,
    ) -> AsyncStream[NewMessage]:
        """Watch all conversations: yield their new messages, each once. The iteration never ends.

        It polls the start of the list, and reads the conversations that have moved there. The messages of one poll are
        ordered by timestamp. An idle poll is one request. The interval grows from `poll_interval` to
        `max_poll_interval` while nothing arrives; a message resets it. Connection failures, 429s and 5xx responses are
        retried until they clear, and reported through `on_retry` and the log; a `Retry-After` of up to an hour is
        respected. Nothing runs between two steps of the iteration, so it can be abandoned at any time.

        With `after`, all messages received since then are read before the first is yielded. A message that the API
        publishes late, after a newer one of the same conversation, is detected by `messageCount`; where that is null,
        it is missed.

        Without `after`, the first response shows what is old. If it lists no conversation, the start is the time in
        its `Date` header. Without that header too, the account is taken to be empty, and all messages that appear
        later are new: the local clock may be wrong, and would then hide them.

        Source: `GET /v1/conversations`, `GET /v1/conversations/{id}/messages`.

        Args:
            after: Start with the messages received after this: an aware `datetime`, an ISO 8601 string with an offset,
                or the `Message` that was handled last, or its `Cursor`, to continue exactly after it. None for the
                messages that arrive after the first step.
            poll_interval: Seconds between polls while messages arrive, more than 0.
            max_poll_interval: The longest interval, in seconds; at least `poll_interval` is used.
            overlap: How late a message may be published, in seconds from 0. One that the API publishes up to this much
                later than messages with a newer timestamp is still yielded, once, out of order.

        Returns:
            An iterator of pairs, `conversation, message`. Nothing is sent before its first step. `aclose()` ends it,
            also while it is waiting for a message.

        Raises:
            APIStatusError: The API returned an error that will not clear by itself. The next step of the same iterator
                tries again.
            APIConnectionError: The certificate is not trusted, or a proxy rejects the connection.
            ResponseDecodeError: The response does not match the API's schema.
            PaginationError: The pages contradict each other, or more messages share one timestamp than fit in a page.
            ClientClosedError: The client was closed.
            RuntimeError: Two tasks or threads stepped the iterator at once, or an exception interrupted a step.
            ValueError: An argument is out of range, or a timestamp has no time or no offset.
            TypeError: An argument has the wrong type.
        """
        check_seconds("poll_interval", poll_interval, maximum=MAX_SECONDS)
        check_seconds("max_poll_interval", max_poll_interval, allow_zero=True, maximum=MAX_SECONDS)
        check_seconds("overlap", overlap, allow_zero=True, maximum=MAX_SECONDS)
        backoff = PollBackoff(poll_interval, max(poll_interval, max_poll_interval))
        paginator = WatchPaginator(
            after=parse_bound(after, "after"),
            overlap=timedelta(seconds=overlap),
            clock=self._transport.clock,
            server_time=self._transport.server_time,
        )

        def spec(
            request: OffsetRequest | MessagesRequest,
        ) -> RequestSpec[Page[Conversation]] | RequestSpec[Page[Message]]:
            if isinstance(request, OffsetRequest):
                return list_conversations(limit=request.limit, offset=request.offset)
            cursor = request.cursor
            return list_messages(request.conversation_id, limit=cursor.limit, before=cursor.before, after=cursor.after)

        def on_not_found(request: OffsetRequest | MessagesRequest) -> Page[Any] | None:
            # A conversation may have gone since it was listed. Where the list itself is not found, something is wrong.
            return GONE if isinstance(request, MessagesRequest) else None

        return PollingStream("watch", paginator, spec, self._transport, backoff, default_on_not_found=on_not_found)
