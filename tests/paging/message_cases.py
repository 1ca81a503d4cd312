"""Random cases for the message paginator, and the check that its results keep the promise.

The promise: every message between the bounds is returned once and in order, whatever the server does. Where the
server has no cursor between more messages than a page can hold, an error says so after all earlier messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

from agentphone import Message, Page, PaginationError
from agentphone._paging.base import Paginator
from agentphone._paging.bounds import TimeBound
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.requests import CursorRequest
from tests.paging.support import MAX_REQUESTS, run_to_end
from tests.support.model import FakeConversation, ServerBehavior, key, small_limits, timestamp_of, truncate

GAP_CHOICES = [0, 0, 0, 1, 1, 2, 999, 1000, 300_000, 1_000_000, 5_000_000]
"""Microseconds between one message and the next: ties, neighbors, and what shows in each number of digits."""
GAPS = st.sampled_from(GAP_CHOICES)
INCLUSIVE_CHOICES: list[bool | str] = [False, False, True, True, "before", "after"]


@frozen
class History:
    """One case: a conversation as the server has it, what is requested, and what arrives meanwhile."""

    server: FakeConversation
    max_messages: int
    """The largest page that the API allows."""
    before: TimeBound | None = None
    after: TimeBound | None = None
    oldest_first: bool = False
    page_size: int = 1
    limit: int | None = None
    bursts: Sequence[tuple[int, int]] = ()
    """How many messages arrive after each request, and the microseconds between them. The last one comes first."""

    def paginator(self) -> CursorPaginator:
        """Create the paginator of this case."""
        return CursorPaginator(
            limit=self.limit,
            before=self.before,
            after=self.after,
            oldest_first=self.oldest_first,
            page_size=self.page_size,
        )

    def wanted(self) -> list[Message]:
        """Return what the paginator promises, by the definition of the bounds and nothing cleverer."""
        return sorted(filter(self.is_wanted, self.server.all()), key=key, reverse=not self.oldest_first)

    def is_wanted(self, message: Message) -> bool:
        """Return whether a message lies between the bounds."""
        return is_after(message, self.after) and is_before(message, self.before)


def is_before(message: Message, bound: TimeBound | None) -> bool:
    if bound is None:
        return True
    if bound.message_id is None:
        return message.received_at < bound.timestamp
    return key(message) < (bound.timestamp, bound.message_id)


def is_after(message: Message, bound: TimeBound | None) -> bool:
    if bound is None:
        return True
    if bound.message_id is None:
        return message.received_at > bound.timestamp
    return key(message) > (bound.timestamp, bound.message_id)


def server_with(*messages: tuple[int, int], **behavior: Any) -> FakeConversation:
    """Create a conversation from pairs of a time and a number of messages. Their ids are in the same order."""
    times = [at for at, count in messages for _ in range(count)]
    return FakeConversation(ServerBehavior(**behavior), [(at, f"msg_{number:03}") for number, at in enumerate(times)])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw a case. Hypothesis reduces a failing one to a small example."""
    behavior = ServerBehavior(
        inclusive=draw(st.booleans() | st.sampled_from(["before", "after"])),
        after_alone=draw(st.sampled_from(["oldest", "newest"])),
        message_order=draw(st.sampled_from(["newest", "oldest"])),
        timestamp_digits=draw(st.sampled_from([0, 3, 6])),
        stored_digits=draw(st.sampled_from([0, 3, 6, 6])),
        cursor_digits=draw(st.sampled_from([0, 3, 6, 6])),
        shuffled=draw(st.booleans()),
        max_page_size=draw(st.sampled_from([1000, 1000, 2, 3])),
    )
    at = draw(st.integers(0, 2_000_000))
    messages = []
    for number in draw(st.permutations(range(draw(st.integers(0, 25))))):
        at += draw(GAPS)
        messages.append((at, f"msg_{number:03}"))
    server = FakeConversation(behavior, messages)

    def bound() -> TimeBound | None:
        kind = draw(st.sampled_from(["none", "none", "message", "timestamp", "between"]))
        if kind == "none" or not messages:
            return None
        message = draw(st.sampled_from(server.all()))
        if kind == "message":
            return TimeBound(message.received_at, message.id)
        off = 0 if kind == "timestamp" else draw(st.sampled_from([-1, 1, 500, 400_000]))
        return TimeBound(message.received_at + timedelta(microseconds=off))

    max_messages = draw(st.integers(2, 6))
    return History(
        server,
        max_messages,
        before=bound(),
        after=bound(),
        oldest_first=draw(st.booleans()),
        page_size=draw(st.integers(1, max_messages)),
        limit=draw(st.none() | st.integers(1, 12)),
        bursts=draw(st.lists(st.tuples(st.integers(0, 4), GAPS), max_size=6)),
    )


def random_history(random: Random) -> History:
    """Create a case from a seed alone, more often large and busy than `histories` does. It takes no time to draw."""
    behavior = ServerBehavior(
        inclusive=random.choice(INCLUSIVE_CHOICES),
        after_alone=random.choice(["oldest", "newest"]),
        message_order=random.choice(["newest", "oldest"]),
        timestamp_digits=random.choice([0, 3, 6]),
        stored_digits=random.choice([0, 3, 6, 6]),
        cursor_digits=random.choice([0, 3, 6, 6]),
        shuffled=random.random() < 0.2,
        max_page_size=random.choice([1000, 1000, 1000, 2, 3, 5]),
    )
    gaps = random.choice([GAP_CHOICES, [0, 1], [1000, 10**6], [10**6, 10**8, 10**10], [1, 999, 1000, 400_000]])
    max_messages = random.randint(2, 8)
    messages, at = [], random.randrange(2_000_000)
    order = list(range(random.randrange(40)))
    random.shuffle(order)
    for number in order:
        at += random.choice(gaps)
        messages.append((at, f"msg_{number:03}"))
    server = FakeConversation(behavior, messages)

    def bound() -> TimeBound | None:
        if not messages or random.random() < 0.5:
            return None
        message = random.choice(server.all())
        if random.random() < 0.5:
            return TimeBound(message.received_at, message.id)
        off = random.choice([0, -1, 1, 500, 400_000])
        return TimeBound(message.received_at + timedelta(microseconds=off))

    return History(
        server,
        max_messages,
        before=bound(),
        after=bound(),
        oldest_first=random.random() < 0.5,
        page_size=random.randint(1, max_messages),
        limit=random.choice([None, None, random.randint(1, 15)]),
        bursts=[
            (random.randrange(4), random.choice(GAP_CHOICES)) for _ in range(random.choice([0, 0, random.randrange(8)]))
        ],
    )


def cell(behavior: ServerBehavior, at: int) -> int:
    """Return the interval of a time, where the server can distinguish intervals by `before`.

    Two messages of one cell have no cursor between them.
    """
    unit: int = 10 ** (6 - behavior.cursor_digits)
    at = truncate(at, behavior.stored_digits)
    return -(-at // unit) if behavior.inclusive in (True, "before") else at // unit


def full_cells(server: FakeConversation, max_messages: int) -> set[int]:
    """Return the cells that hold more than a page.

    Where the server truncates cursors, or includes only one end of an interval, a cell that just fills a page counts
    too: then nothing shows whether the page holds all of it.
    """
    behavior = server.behavior
    max_messages = min(max_messages, behavior.max_page_size)
    if behavior.cursor_digits < 6 or behavior.inclusive in ("before", "after"):
        max_messages -= 1
    count = Counter(cell(behavior, at) for at, _ in server.messages)
    return {name for name, size in count.items() if size > max_messages}


def readable_count(history: History, full: set[int]) -> int:
    """Count the wanted messages that come before the first one whose printed timestamp touches a full cell.

    Where the server truncates cursors or includes one end only, a full cell within the second after `before` counts
    too: its unseen messages may be on either side of the bound.
    """
    server, behavior = history.server, history.server.behavior
    unreadable = {
        timestamp_of(truncate(at, behavior.stored_digits), behavior.timestamp_digits)
        for at, _ in server.messages
        if cell(behavior, at) in full
    }
    near = {bound.timestamp for bound in (history.before, history.after) if bound and bound.message_id}
    if history.before and (behavior.cursor_digits < 6 or behavior.inclusive in ("before", "after")):
        near |= {at for at in unreadable if timedelta(0) <= at - history.before.timestamp < timedelta(seconds=2)}
    count = 0
    for item in sorted(server.all(), key=key, reverse=not history.oldest_first):
        if item.received_at in unreadable and (history.is_wanted(item) or item.received_at in near):
            break
        count += history.is_wanted(item)
    return count if history.limit is None else min(count, history.limit)


def check_history(
    history: History, make: Callable[[History], Paginator[CursorRequest, Message]] = History.paginator
) -> tuple[PaginationError | None, int]:
    """Run the paginator of a case, and compare its items with the promise."""
    server, promised, bursts = history.server, history.wanted(), list(history.bursts)

    def between() -> None:
        if bursts:
            count, gap = bursts.pop()
            for _ in range(count):
                latest = max((at for at, _ in server.messages), default=0)
                server.messages.append((latest + gap, f"new_{len(server.messages):03}"))

    def respond(request: CursorRequest) -> Page[Message]:
        assert 1 <= request.limit <= history.max_messages
        return server.page(request.limit, request.before, request.after)

    with small_limits(MAX_MESSAGES=history.max_messages):
        count_before = len(server.messages)
        # Where a tiny page shows other messages of a group each time, or more than a page arrives at one timestamp,
        # many requests are needed.
        max_requests = 5 * MAX_REQUESTS if server.behavior.shuffled or history.bursts else MAX_REQUESTS
        items, error, requests = run_to_end(make(history), respond, between, max_requests)
    keys = list(map(key, items))
    assert keys == sorted(keys, reverse=not history.oldest_first)
    assert len(set(keys)) == len(keys)
    assert all(map(history.is_wanted, items))
    if error is not None:
        full = full_cells(server, history.max_messages)
        assert full, error
        if len(server.messages) == count_before and not server.behavior.shuffled:
            assert len(items) >= readable_count(history, full)
    if history.limit is not None:
        assert len(items) <= history.limit
        if len(server.messages) > count_before:
            return error, requests
        promised = promised[: history.limit]
    old = [message for message in items if message.id.startswith("msg")]
    assert old == (promised if error is None else promised[: len(old)])
    return error, requests
