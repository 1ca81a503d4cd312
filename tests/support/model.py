"""A model of the API's two lists, with every reading that the documentation leaves open, for the walks' property tests.

Whole and simple rather than fast: a list in memory, sorted anew for each page. The tests move it between requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

from attrs import define, field, frozen

from agentphone import Conversation, Message, Page

START = datetime(2025, 1, 15, 12, tzinfo=UTC)


@frozen
class Behavior:
    """What the server does where its documentation is silent."""

    inclusive: bool | str = False
    """Whether the instants at the boundaries count: both, neither, or only that of "before" or of "after"."""
    after_alone: str = "oldest"
    message_order: str = "newest"
    timestamp_digits: int = 6
    """Of an instant that is printed; the rest is cut off."""
    stored: int = 6
    """Digits of an instant that is stored."""
    read: int = 6
    """Digits of a cursor that count; the rest is cut off."""
    shuffled: bool = False
    """Whether messages of one instant come in another order with each request."""
    has_total: bool = True
    most: int = 1000
    """The largest page it gives, whatever was asked for."""
    counts: bool = True
    nulls: str = "first"
    """Where in the list stands what has no date."""


def printed(micros: int, timestamp_digits: int) -> datetime:
    """Cut an instant, microseconds after START, to the digits that are printed."""
    return START + timedelta(microseconds=cut(micros, timestamp_digits))


def cut(micros: int, timestamp_digits: int) -> int:
    unit: int = 10 ** (6 - timestamp_digits)
    return micros // unit * unit


def micros_of(instant: datetime) -> int:
    return (instant - START) // timedelta(microseconds=1)


@define
class Thread:
    """One conversation's messages: pairs of microseconds after START and an id."""

    behavior: Behavior = field(factory=Behavior)
    messages: list[tuple[int, str]] = field(factory=list)
    requests: int = 0

    def page(self, limit: int, before: datetime | None, after: datetime | None) -> Page[Message]:
        self.requests += 1
        limit = min(limit, self.behavior.most)
        inclusive, read = self.behavior.inclusive, self.behavior.read
        found = sorted((cut(at, self.behavior.stored), self._tie(identity), identity) for at, identity in self.messages)
        if before is not None:
            bound = cut(micros_of(before), read)
            found = [item for item in found if item[0] < bound or (inclusive in (True, "before") and item[0] == bound)]
        if after is not None:
            bound = cut(micros_of(after), read)
            found = [item for item in found if item[0] > bound or (inclusive in (True, "after") and item[0] == bound)]
        takes_oldest = after is not None and before is None and self.behavior.after_alone == "oldest"
        page = found[:limit] if takes_oldest else found[-limit:]
        if self.behavior.message_order == "newest":
            page.reverse()
        data = tuple(self.message((at, identity)) for at, _, identity in page)
        return Page(data=data, has_more=len(found) > len(page))

    def _tie(self, identity: str) -> int:
        return Random(f"{self.requests} {identity}").getrandbits(32) if self.behavior.shuffled else 0

    def message(self, item: tuple[int, str]) -> Message:
        return Message(
            id=item[1],
            from_number="+15550100001",
            to_number="+15550100002",
            received_at=printed(cut(item[0], self.behavior.stored), self.behavior.timestamp_digits),
        )

    def all(self) -> list[Message]:
        """Give all messages as printed, in the order that the walk promises."""
        return sorted(map(self.message, self.messages), key=key)


def key(message: Message) -> tuple[datetime, str]:
    return message.received_at, message.id


@define
class Inbox:
    """The list of conversations: id to the microseconds of its last message, and to the count of its messages."""

    behavior: Behavior = field(factory=Behavior)
    last: dict[str, int | None] = field(factory=dict)
    """None for a conversation without any message."""
    count: dict[str, int] = field(factory=dict)
    now: int = 0
    requests: int = 0
    made: Iterator[int] = field(factory=lambda: iter(range(10**9)))

    def receive(self, conversation_id: str | None = None, *, wait: int = 1, late: int = 0) -> str:
        """Let a message come in, dated `late` microseconds ago: its conversation moves up, or begins."""
        self.now += wait
        conversation_id = conversation_id or self.begin()
        last = self.last[conversation_id]
        self.last[conversation_id] = self.now - late if last is None else max(last, self.now - late)
        self.count[conversation_id] += 1
        return conversation_id

    def begin(self) -> str:
        """Add a conversation without any message."""
        conversation_id = f"conv_{next(self.made)}"
        self.last[conversation_id], self.count[conversation_id] = None, 0
        return conversation_id

    def remove(self, conversation_id: str) -> None:
        del self.last[conversation_id], self.count[conversation_id]

    def page(self, limit: int, offset: int) -> Page[Conversation]:
        self.requests += 1
        limit = min(limit, self.behavior.most)
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
        last = self.last[conversation_id]
        return Conversation(
            id=conversation_id,
            phone_number="+15550100002",
            participant="+15550100001",
            last_message_at=None if last is None else printed(last, self.behavior.timestamp_digits),
            message_count=self.count[conversation_id],
        )


@define
class Account:
    """All conversations with all their messages: what comes in may be shown late, dated when it was sent."""

    behavior: Behavior = field(factory=Behavior)
    states: dict[str, Thread] = field(factory=dict)
    now: int = 0
    requests: int = 0
    made: Iterator[int] = field(factory=lambda: iter(range(10**9)))
    silent: list[str] = field(factory=list)
    """Conversations without any message, which stand at the front of the list."""
    hidden: str | None = None
    """A conversation that the list leaves out for a while."""

    def receive(self, conversation_id: str, *, wait: int = 1, late: int = 0, prefix: str = "msg") -> str:
        """Let a message come in, dated `late` microseconds ago."""
        self.now += wait
        state = self.states.setdefault(conversation_id, Thread(self.behavior))
        message_id = f"{prefix}_{next(self.made) * 7919 % 10007:05}"  # ids do not follow time
        state.messages.append((self.now - late, message_id))
        return message_id

    def list(self, limit: int, offset: int) -> Page[Conversation]:
        """Give a page of conversations."""
        self.requests += 1
        limit = min(limit, self.behavior.most)
        shown = [name for name, state in self.states.items() if state.messages and name != self.hidden]
        order = sorted(shown, key=lambda name: (max(self.states[name].messages)[0], name), reverse=True)
        order = self.silent + order
        page = order[offset : offset + limit]
        return Page(
            data=tuple(map(self.conversation, page)),
            has_more=offset + len(page) < len(order),
            total=len(order) if self.behavior.has_total else None,
        )

    def conversation(self, conversation_id: str) -> Conversation:
        messages = self.states[conversation_id].messages if conversation_id in self.states else []
        return Conversation(
            id=conversation_id,
            phone_number="+15550100002",
            participant="+15550100001",
            last_message_at=printed(max(messages)[0], self.behavior.timestamp_digits) if messages else None,
            message_count=len(messages) if self.behavior.counts else None,
        )

    def messages(
        self, conversation_id: str, limit: int, before: datetime | None, after: datetime | None
    ) -> Page[Message]:
        """Give a page of messages."""
        self.requests += 1
        return self.states.setdefault(conversation_id, Thread(self.behavior)).page(limit, before, after)
