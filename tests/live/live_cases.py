"""Random cases for the live paginators, and the check that their results keep the promise.

The promise: every message is returned once, if it is after the start and shown at most the overlap late. An idle poll
is one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import define, evolve, field, frozen
from hypothesis import assume
from hypothesis import strategies as st

from agentphone import Conversation, Message, NewMessage, Page, PaginationError
from agentphone._paging.bounds import TimeBound, is_after
from agentphone._paging.follow import FollowPaginator
from agentphone._paging.requests import MessagesRequest, OffsetRequest
from agentphone._paging.watch import WatchPaginator
from tests.support.model import FakeAccount, ServerBehavior, key, micros_of, small_limits, timestamp_of

WAITS = st.sampled_from([1, 1, 2, 999, 1000, 300_000, 1_000_000, 5_000_000])
"""Microseconds between one message and the next."""
OVERLAP = 3_000_000
MARGIN = 3_000_000
"""For truncated digits, twice, and the time that the first poll takes."""
FUTURE = 3_600_000_000
"""How far in the future some messages are dated."""
MAX_REQUESTS = 3000

Event = tuple[int, int, int]
"""A message: in which conversation, after how many microseconds, and how late it is shown."""
LivePaginators = FollowPaginator | WatchPaginator


@frozen
class Case:
    """An account as it is at first, how it is read, and what arrives after each request."""

    account: FakeAccount
    after: TimeBound | None
    events: Sequence[Sequence[Event]]
    delay: int = 1000
    """Microseconds between two polls."""
    hidden: Sequence[str] = ()
    """Which conversation is missing from the list, poll by poll."""
    faults: Sequence[str] = ()
    """What each request gets instead of its response: "fail" (an error, so that it is sent again) or "empty"."""
    has_date: bool = False
    """Whether responses have a `Date`."""
    list_digits: int = 6
    """The fractional digits of timestamps in the list."""
    cursor_digits: int = 6
    """The fractional digits of a cursor that are compared."""

    def paginator(self, *, is_watch: bool, clock: Any, server_time: Any) -> LivePaginators:
        """Create the paginator of this case."""
        cls = WatchPaginator if is_watch else FollowPaginator
        return cls(after=self.after, overlap=timedelta(microseconds=OVERLAP), clock=clock, server_time=server_time)


@define
class Run:
    """Drives a live paginator until nothing new arrives, and records what it returns."""

    case: Case
    is_watch: bool
    faults: list[str] = field(factory=list)
    items: list[Message] = field(factory=list)
    batches: list[list[Message]] = field(factory=list)
    """The items of each poll."""
    polls: list[int] = field(factory=list)
    """The number of requests of each poll."""
    early: set[str] = field(factory=set)
    """What arrived during the first poll."""
    date: datetime | None = None
    """The `Date` of the latest response."""
    has_started: bool = False
    """Whether a poll has returned anything yet."""
    missing_since: dict[str, int] = field(factory=dict)
    """Since when a conversation's messages have not been shown whole in any poll."""
    read_in_poll: set[str] = field(factory=set)
    emptied_in_poll: set[str] = field(factory=set)
    hiding: str | None = None
    """Which conversation is missing from the list in this poll."""
    unlisted: set[tuple[int, str]] = field(factory=set)
    """The messages of the conversation that is missing from the list."""
    too_late: set[str] = field(factory=set)
    """The messages that were missing from the list until they were older than the overlap."""

    def go(self, paginator: LivePaginators) -> None:
        """Drive the paginator."""
        account, events = self.case.account, list(self.case.events)
        self.faults = list(self.case.faults)
        idle_polls = 0
        has_shown = False
        began = account.requests
        batch: list[Message] = []
        hidden = iter(self.case.hidden)
        while idle_polls < 6:
            assert account.requests < MAX_REQUESTS, "a poll does not end"
            requests = paginator.next_requests()
            if not requests:
                self.polls.append(account.requests - began)
                began = account.requests
                self.batches.append(batch)
                idle_polls = 0 if batch or events or self.faults else idle_polls + 1
                account.now += self.case.delay  # the paginator's clock is the same
                batch = []
                self.has_started |= has_shown and "list" not in self.emptied_in_poll
                self.hiding = next(hidden, None)
                idle_polls = 0 if self.hiding else idle_polls
                for name in self.read_in_poll - self.emptied_in_poll:
                    self.missing_since.pop(name, None)
                self.read_in_poll, self.emptied_in_poll = set(), set()
                paginator.receive(())
                continue
            pages = []
            is_failed = False
            for request in requests:
                fault = self.faults.pop(0) if self.faults else ""
                is_failed |= fault == "fail"
                pages.append(self.respond(request, is_empty=fault == "empty"))
                self.receive(events.pop(0) if events else ())
            if is_failed:
                continue  # all of them are sent again
            has_shown |= any(page.data for page in pages)
            new = [item.message if isinstance(item, NewMessage) else item for item in paginator.receive(pages)]
            batch += new
            self.items += new

    def receive(self, events: Sequence[Event]) -> None:
        """Add messages to the account."""
        is_first_poll = not (self.polls and self.has_started)
        for conversation, wait, late in events:
            shown_late = min(late, 0) if is_first_poll else late
            new = self.case.account.receive(f"conv_{conversation}", wait=wait, late=shown_late)
            if is_first_poll:
                self.early.add(new)

    def respond(self, request: Any, *, is_empty: bool) -> Any:
        """Return the page for a request; an empty one if the case says so and the promise allows it."""
        account = self.case.account
        self.date = timestamp_of(account.now, 0) if self.case.has_date else None
        empty_page: Any = Page(data=(), has_more=False, total=0 if account.behavior.has_total else None)
        if isinstance(request, OffsetRequest):
            if request.offset == 0:
                account.hidden = self.hiding
                if self.hiding is not None:
                    hidden = account.conversations.get(self.hiding)
                    self.unlisted |= set(hidden.messages if hidden is not None else [])
                else:
                    self.too_late |= {name for at, name in self.unlisted if account.now - at > OVERLAP}
                    self.unlisted = set()
            page = account.list_page(request.limit, request.offset)
            if "list" in self.read_in_poll:  # the list is truncated in the middle
                is_empty = is_empty and account.now - self.missing_since.setdefault("list", account.now) <= OVERLAP
                self.emptied_in_poll |= {"list"} if is_empty else set()
            self.read_in_poll.add("list")
            return empty_page if is_empty else evolve(page, data=tuple(map(self.as_listed, page.data)))
        name = request.conversation_id if isinstance(request, MessagesRequest) else "conv_0"
        cursor = request.cursor if isinstance(request, MessagesRequest) else request
        page_of_messages = account.message_page(
            name, cursor.limit, self.as_compared(cursor.before), self.as_compared(cursor.after)
        )
        self.read_in_poll.add(name)
        if not self.is_watch and not self.polls and self.case.after is not None:
            is_empty = False  # the history that is read at the start counts as complete
        if is_empty and account.now - self.missing_since.setdefault(name, account.now) <= OVERLAP:
            self.emptied_in_poll.add(name)
            return empty_page
        return page_of_messages

    def as_listed(self, conversation: Conversation) -> Conversation:
        """Return a conversation with the digits that the list prints."""
        last = conversation.last_message_at
        if last is None:
            return conversation
        return evolve(conversation, last_message_at=timestamp_of(micros_of(last), self.case.list_digits))

    def as_compared(self, cursor: datetime | None) -> datetime | None:
        """Return a cursor with the digits that the server compares."""
        return cursor if cursor is None else timestamp_of(micros_of(cursor), self.case.cursor_digits)


def check(case: Case, *, is_watch: bool) -> None:
    """Run the paginator of a case, and compare its items with the promise."""
    account = case.account
    at_start, began = account.ids(), account.now
    run = Run(case, is_watch)
    with small_limits(MAX_MESSAGES=12, MAX_CONVERSATIONS=8, LOOKBACK=3, PAGE_HEADROOM=3, MAX_CONCURRENT_READS=2):
        try:
            run.go(case.paginator(is_watch=is_watch, clock=lambda: account.now / 1e6, server_time=lambda: run.date))
        except PaginationError:
            # If the server truncates cursors, more messages than a page may have no cursor between them. An empty
            # response while such messages are read looks the same. Neither loses a message silently.
            assume(case.cursor_digits == 6 and "empty" not in case.faults)
            raise
    ids = [message.id for message in run.items]
    assert len(set(ids)) == len(ids), "repeated"
    everything = {
        message.id: message
        for name, conversation in account.conversations.items()
        if is_watch or name == "conv_0"
        for message in conversation.all()
    }
    promised, optional = promise(case, run, everything, at_start, began)
    assert promised - set(ids) - run.too_late <= (run.early if case.faults or case.hidden else set()), "lost"
    if case.has_date or not case.hidden:
        assert set(ids) - promised <= optional, "not wanted"
    for batch in run.batches:
        assert batch == sorted(batch, key=key)
    future = [
        at for conversation in account.conversations.values() for at, _ in conversation.messages if at > account.now
    ]
    if case.delay > OVERLAP + 1_000_000 and len(future) < 2:
        assert run.polls[-1] == 1, "an idle poll is one request"


def promise(
    case: Case, run: Run, everything: Mapping[str, Message], at_start: set[str], began: int
) -> tuple[set[str], set[str]]:
    """Return the ids of the messages that must be returned, and of those that may be."""
    if case.after is None:
        promised = set(everything) - at_start
    else:
        promised = {name for name, message in everything.items() if is_after(message, case.after)}
        if case.after.message_id is not None:
            promised |= set(everything) - at_start - run.early
    optional = run.early if case.after is not None and case.after.message_id is not None else set()
    if case.after is None and any(
        at > began
        for conversation in case.account.conversations.values()
        for at, name in conversation.messages
        if name in at_start
    ):
        # The newest message of the first poll is dated in the future, and these are before it.
        promised -= run.early
        optional = optional | run.early
    if case.faults or case.hidden:
        # A message that was missing at first, and is no older than the overlap, looks like one that is shown late.
        optional = optional | {
            name for name, message in everything.items() if micros_of(message.received_at) >= began - OVERLAP - MARGIN
        }
        # One that is shown late and is dated before the start looks old.
        start = case.after or TimeBound(timestamp_of(began, 6))
        promised = {name for name in promised if is_after(everything[name], start)}
    return promised, optional


@st.composite
def cases(draw: st.DrawFn, conversations: int, *, allow_future: bool = True) -> Case:
    """Draw a case.

    Args:
        draw: Given by Hypothesis.
        conversations: The largest number of conversations.
        allow_future: Whether messages may be dated in the future.
    """
    digits = draw(st.sampled_from([0, 3, 6]))
    behavior = ServerBehavior(
        inclusive=draw(st.sampled_from([False, False, True])),
        after_alone=draw(st.sampled_from(["oldest", "newest"])),
        message_order=draw(st.sampled_from(["newest", "oldest"])),
        timestamp_digits=digits,
        has_total=draw(st.booleans()),
        max_page_size=draw(st.sampled_from([1000, 1000, 4])),
        # Without counts, two messages with the same printed timestamp look like one.
        has_counts=digits < 6 or draw(st.booleans()),
    )
    # The list paginator assumes that fewer conversations move between two requests than half a page holds.
    is_small = behavior.max_page_size == 4
    empty = [] if is_small else ["conv_empty_1", "conv_empty_2"][: draw(st.sampled_from([0, 0, 1, 2]))]
    account = FakeAccount(behavior, empty=empty)
    which = st.integers(0, conversations - 1)
    for _ in range(draw(st.integers(0, 15))):
        wait = draw(WAITS)
        # No whole second or millisecond: it would look like a timestamp that was truncated.
        wait += 1000 * ((account.now + wait) % 1_000_000 < 1000) + ((account.now + wait) % 1000 == 0)
        account.receive(f"conv_{draw(which)}", wait=wait)
    messages = account.all()
    after: TimeBound | None = None
    kind = draw(st.sampled_from(["now", "message", "timestamp"]))
    if kind != "now" and messages:
        message = draw(st.sampled_from(messages))
        after = TimeBound(message.received_at, message.id if kind == "message" else None)
    has_date = draw(st.booleans())
    can_have_future = allow_future and (conversations == 1 or (has_date and behavior.has_counts))
    has_future = can_have_future and draw(st.booleans())
    # Without counts in the list, watch does not promise to return messages that are shown late.
    lates = [0, 0, 0, 1, 1000, 2_000_000, OVERLAP] if conversations == 1 or behavior.has_counts else [0]
    if has_future and has_date:
        lates += [-FUTURE]
    # Future dates in one conversation only: two of them would hide from the list paginator what moves up after them.
    event = st.tuples(which, WAITS, st.sampled_from(lates)).map(lambda e: (0, *e[1:]) if e[2] < 0 else e)
    if has_future:
        account.receive("conv_0", late=-FUTURE)
    events = draw(st.lists(st.lists(event, max_size=1 if is_small else 4), max_size=12))
    list_digits = draw(st.sampled_from([6, 6, 3, 0])) if behavior.has_counts else 6
    if after is None and min(behavior.timestamp_digits, list_digits) < 6:
        # Whole seconds do not show which message of one second came first. Let two seconds pass after the start.
        events = [[], [], [], [(0, 2_000_000, 0)], *events]
    hidden = [f"conv_{draw(which)}"] * (draw(st.sampled_from([0, 0, 0, 1, 4])) if conversations > 1 else 0)
    faults: list[str] = []
    # If watch starts in a conversation whose newest message is dated in the future, it must see the whole of it.
    if after is not None or (has_date and not (has_future and conversations > 1)):
        kinds = ["", "", "", "fail"] if hidden else ["", "", "", "fail", "empty", "empty"]
        faults = draw(st.lists(st.sampled_from(kinds), max_size=30))
    return Case(
        account,
        after,
        events,
        draw(st.sampled_from([1, 1000, 700_000, 6_000_000])),
        hidden,
        faults,
        has_date,
        list_digits,
        6 if behavior.inclusive else draw(st.sampled_from([6, 6, behavior.timestamp_digits])),
    )
