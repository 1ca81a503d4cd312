"""Models of the API's lists, with every behavior that the documentation leaves open. For the paginators' random tests.

Simple rather than fast: lists in memory, sorted again for each page. The tests change them between requests. Times are
integers: microseconds after START.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from random import Random

import pytest
from attrs import define, field, frozen

from agentphone import Conversation, Message, Page
from agentphone._paging import ascending, cursor, follow, offset, pages, polling, same_timestamp, watch

START = datetime(2025, 1, 15, 12, tzinfo=UTC)
PAGING_MODULES = (ascending, cursor, follow, offset, pages, polling, same_timestamp, watch)


@contextmanager
def small_limits(**limits: int) -> Iterator[None]:
    """Replace constants of the paginators, so that small examples reach the code for large groups and lists.

    The tests with fixed numbers use the real constants.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            users = [module for module in PAGING_MODULES if hasattr(module, name)]
            assert users, name
            for module in users:
                patch.setattr(module, name, value)
        yield


@frozen
class ServerBehavior:
    """What the server does where its documentation is silent."""

    inclusive: bool | str = False
    """Whether `before` and `after` include their own timestamp: both, neither, or only "before" or "after"."""
    after_alone: str = "oldest"
    """Whether `after` without `before` returns the oldest messages, or the newest."""
    message_order: str = "newest"
    """Which messages of a page come first."""
    timestamp_digits: int = 6
    """The fractional digits of a printed timestamp. The rest is truncated."""
    stored_digits: int = 6
    """The fractional digits of a stored timestamp."""
    cursor_digits: int = 6
    """The fractional digits of a cursor that are compared. The rest is truncated."""
    shuffled: bool = False
    """Whether each request gets the messages of one timestamp in another order."""
    has_total: bool = True
    """Whether the list has a total."""
    max_page_size: int = 1000
    """The largest page, whatever was requested."""
    has_counts: bool = True
    """Whether conversations have a count of messages."""
    nulls: str = "first"
    """Where in the list conversations without a date are."""


def truncate(micros: int, digits: int) -> int:
    """Truncate a time to so many fractional digits of a second."""
    unit: int = 10 ** (6 - digits)
    return micros // unit * unit


def timestamp_of(micros: int, digits: int) -> datetime:
    """Return a time as the server prints it."""
    return START + timedelta(microseconds=truncate(micros, digits))


def micros_of(timestamp: datetime) -> int:
    """Return a timestamp as microseconds after START."""
    return (timestamp - START) // timedelta(microseconds=1)


def key(message: Message) -> tuple[datetime, str]:
    """Return the key of the order that the paginators promise."""
    return message.received_at, message.id


def _index(found: list[tuple[int, int, str]], bound: int, *, is_after: bool) -> int:
    """Return the index of the first item that is not before this time, or of the first one after it."""
    return (bisect_right if is_after else bisect_left)(found, bound, key=itemgetter(0))


@define
class FakeConversation:
    """One conversation's messages."""

    behavior: ServerBehavior = field(factory=ServerBehavior)
    messages: list[tuple[int, str]] = field(factory=list)
    """The time and the id of each."""
    requests: int = 0

    def page(self, limit: int, before: datetime | None, after: datetime | None) -> Page[Message]:
        """Return the response to a request."""
        self.requests += 1
        limit = min(limit, self.behavior.max_page_size)
        inclusive, digits = self.behavior.inclusive, self.behavior.cursor_digits
        found = self._sorted()
        begin, end = 0, len(found)
        if before is not None:
            end = _index(found, truncate(micros_of(before), digits), is_after=inclusive in (True, "before"))
        if after is not None:
            begin = _index(found, truncate(micros_of(after), digits), is_after=inclusive not in (True, "after"))
        found = found[begin:end]
        returns_oldest = after is not None and before is None and self.behavior.after_alone == "oldest"
        page = found[:limit] if returns_oldest else found[-limit:]
        if self.behavior.message_order == "newest":
            page.reverse()
        data = tuple(self.message((at, message_id)) for at, _, message_id in page)
        return Page(data=data, has_more=len(found) > len(page))

    def _sorted(self) -> list[tuple[int, int, str]]:
        """Return the stored time of each message, what decides among equal times, and the id."""
        unit = 10 ** (6 - self.behavior.stored_digits)
        if self.behavior.shuffled:
            return sorted((at // unit * unit, self._tie(message_id), message_id) for at, message_id in self.messages)
        return sorted((at // unit * unit, 0, message_id) for at, message_id in self.messages)

    def _stored(self, at: int) -> int:
        return truncate(at, self.behavior.stored_digits)

    def _tie(self, message_id: str) -> int:
        return Random(f"{self.requests} {message_id}").getrandbits(32)

    def message(self, item: tuple[int, str]) -> Message:
        """Return a message as the server prints it."""
        return Message(
            id=item[1],
            from_number="+15550100001",
            to_number="+15550100002",
            received_at=timestamp_of(self._stored(item[0]), self.behavior.timestamp_digits),
        )

    def all(self) -> list[Message]:
        """Return all messages in the order that the paginators promise."""
        return sorted(map(self.message, self.messages), key=key)


@define
class FakeList:
    """The list of conversations, without their messages."""

    behavior: ServerBehavior = field(factory=ServerBehavior)
    last: dict[str, int | None] = field(factory=dict)
    """The time of each conversation's last message, by id. None if it has no message."""
    count: dict[str, int] = field(factory=dict)
    """The number of each conversation's messages, by id."""
    now: int = 0
    requests: int = 0
    numbers: Iterator[int] = field(factory=lambda: iter(range(10**9)))

    def receive(self, conversation_id: str | None = None, *, wait: int = 1, late: int = 0) -> str:
        """Add a message, `wait` later and dated `late` earlier. Without an id, create a conversation for it."""
        self.now += wait
        conversation_id = conversation_id or self.add_empty()
        last = self.last[conversation_id]
        self.last[conversation_id] = self.now - late if last is None else max(last, self.now - late)
        self.count[conversation_id] += 1
        return conversation_id

    def add_empty(self) -> str:
        """Add a conversation without messages."""
        conversation_id = f"conv_{next(self.numbers)}"
        self.last[conversation_id], self.count[conversation_id] = None, 0
        return conversation_id

    def remove(self, conversation_id: str) -> None:
        """Remove a conversation."""
        del self.last[conversation_id], self.count[conversation_id]

    def page(self, limit: int, offset: int) -> Page[Conversation]:
        """Return the response to a request."""
        self.requests += 1
        limit = min(limit, self.behavior.max_page_size)
        undated = float("inf" if self.behavior.nulls == "first" else "-inf")
        dates = {name: undated if last is None else last for name, last in self.last.items()}
        order = sorted(dates, key=lambda name: (dates[name], name), reverse=True)
        page = order[offset : offset + limit]
        return Page(
            data=tuple(map(self.conversation, page)),
            has_more=offset + len(page) < len(order),
            total=len(order) if self.behavior.has_total else None,
        )

    def conversation(self, conversation_id: str) -> Conversation:
        """Return a conversation as the list shows it."""
        last = self.last[conversation_id]
        return Conversation(
            id=conversation_id,
            phone_number="+15550100002",
            participant="+15550100001",
            last_message_at=None if last is None else timestamp_of(last, self.behavior.timestamp_digits),
            message_count=self.count[conversation_id],
        )


@define
class FakeAccount:
    """All conversations with all their messages."""

    behavior: ServerBehavior = field(factory=ServerBehavior)
    conversations: dict[str, FakeConversation] = field(factory=dict)
    now: int = 0
    requests: int = 0
    numbers: Iterator[int] = field(factory=lambda: iter(range(10**9)))
    empty: list[str] = field(factory=list)
    """Conversations without messages, which are at the front of the list."""
    hidden: str | None = None
    """A conversation that is missing from the list for a while."""

    def receive(self, conversation_id: str, *, wait: int = 1, late: int = 0) -> str:
        """Add a message, `wait` later and dated `late` earlier, and return its id."""
        self.now += wait
        conversation = self.conversations.setdefault(conversation_id, FakeConversation(self.behavior))
        message_id = f"msg_{next(self.numbers) * 7919 % 10007:05}"  # ids are not in the order of time
        conversation.messages.append((self.now - late, message_id))
        return message_id

    def list_page(self, limit: int, offset: int) -> Page[Conversation]:
        """Return the response to a request for the list."""
        self.requests += 1
        limit = min(limit, self.behavior.max_page_size)
        shown = [name for name, item in self.conversations.items() if item.messages and name != self.hidden]
        order = sorted(shown, key=lambda name: (max(self.conversations[name].messages)[0], name), reverse=True)
        order = self.empty + order
        page = order[offset : offset + limit]
        return Page(
            data=tuple(map(self.conversation, page)),
            has_more=offset + len(page) < len(order),
            total=len(order) if self.behavior.has_total else None,
        )

    def conversation(self, conversation_id: str) -> Conversation:
        """Return a conversation as the list shows it."""
        messages = self.conversations[conversation_id].messages if conversation_id in self.conversations else []
        last = max(messages)[0] if messages else None
        return Conversation(
            id=conversation_id,
            phone_number="+15550100002",
            participant="+15550100001",
            last_message_at=None if last is None else timestamp_of(last, self.behavior.timestamp_digits),
            message_count=len(messages) if self.behavior.has_counts else None,
        )

    def message_page(
        self, conversation_id: str, limit: int, before: datetime | None, after: datetime | None
    ) -> Page[Message]:
        """Return the response to a request for messages."""
        self.requests += 1
        conversation = self.conversations.setdefault(conversation_id, FakeConversation(self.behavior))
        return conversation.page(limit, before, after)

    def all(self) -> list[Message]:
        """Return the messages of all conversations, in order."""
        return sorted((message for item in self.conversations.values() for message in item.all()), key=key)

    def ids(self) -> set[str]:
        """Return the ids of all messages."""
        return {message_id for item in self.conversations.values() for _, message_id in item.messages}
