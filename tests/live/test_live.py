"""Live walks against the model of an account that moves: nothing lost, nothing repeated, and few requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import define, evolve, field, frozen
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from agentphone import Conversation, Message, NewMessage, Page
from agentphone._paging import cursor, follow, offset, polling, watch
from agentphone._paging.bounds import TimeBound
from agentphone._paging.follow import FollowPaginator
from agentphone._paging.offset import OffsetRequest
from agentphone._paging.polling import PollBackoff, is_after
from agentphone._paging.watch import MessagesRequest, WatchPaginator
from agentphone.errors import PaginationError
from tests.support.model import Account, Behavior, key, micros_of, printed

MANY = settings(
    max_examples=int(os.environ.get("LIVE_EXAMPLES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
WAITS = st.sampled_from([1, 1, 2, 999, 1000, 300_000, 1_000_000, 5_000_000])
"""Microseconds between one message and the next."""
OVERLAP = 3_000_000
MARGIN = 3_000_000
"""For what printing cuts off, twice, and the time that the first poll takes."""
PREFETCH_FACTOR = 3_600_000_000
ENDLESS = 3000

Event = tuple[int, int, int]
"""A message: in which conversation, after how many microseconds, and how late it is shown."""


@frozen
class Case:
    """An account as it is at first, how it is read, and what comes in behind each request."""

    account: Account
    after: TimeBound | None
    events: Sequence[Sequence[Event]]
    next_delay: int = 1000
    """Microseconds between two polls."""
    hidden: Sequence[str] = ()
    """Which conversation the list leaves out, poll by poll."""
    faults: Sequence[str] = ()
    """What each request gets instead of its answer: "fail" (404 for the list, 500) or "empty"."""
    tells_time: bool = False
    """Whether the answers have a `Date`."""
    list_digits: int = 6
    """How many digits the list prints of what the messages print."""
    reads: int = 6
    """How many digits of a cursor count."""

    def paginator(self, *, of_all: bool, clock: Any, server_time: Any) -> FollowPaginator | WatchPaginator:
        kind = WatchPaginator if of_all else FollowPaginator
        return kind(
            after=self.after,
            overlap=timedelta(microseconds=OVERLAP),
            clock=clock,
            server_time=server_time,
        )


@define
class Run:
    """Drives a live walk until nothing comes any more, and keeps what it gave."""

    case: Case
    of_all: bool
    faults: list[str] = field(factory=list)
    out: list[Message] = field(factory=list)
    batches: list[list[Message]] = field(factory=list)
    polls: list[int] = field(factory=list)
    """The requests that each poll took."""
    early: set[str] = field(factory=set)
    """What came in while the first poll was under way."""
    missing: dict[str, int] = field(factory=dict)
    """Since when a conversation's messages have not been shown whole in any poll."""
    read_now: set[str] = field(factory=set)
    empty_now: set[str] = field(factory=set)
    hiding: str | None = None
    skipped: set[tuple[int, str]] = field(factory=set)
    too_late: set[str] = field(factory=set)
    """What the list left out until it was older than the overlap."""
    date: datetime | None = None
    """When the latest answer was made, by the server's clock."""
    is_listed: bool = False
    """Whether a poll has shown anything yet."""

    def go(self, paginator: FollowPaginator | WatchPaginator) -> None:
        account, events = self.case.account, list(self.case.events)
        self.faults = list(self.case.faults)
        quiet = 0
        has_shown = False
        began = account.requests
        batch: list[Message] = []
        hidden = iter(self.case.hidden)
        while quiet < 6:
            assert account.requests < ENDLESS, "a poll does not end"
            requests = paginator.next_requests()
            if not requests:
                self.polls.append(account.requests - began)
                began = account.requests
                self.batches.append(batch)
                quiet = 0 if batch or events or self.faults else quiet + 1
                account.now += self.case.next_delay  # of the same clock
                batch = []
                self.is_listed |= has_shown and "list" not in self.empty_now
                self.hiding = next(hidden, None)
                quiet = 0 if self.hiding else quiet
                for name in self.read_now - self.empty_now:
                    self.missing.pop(name, None)
                self.read_now, self.empty_now = set(), set()
                paginator.receive(())
                continue
            pages = []
            is_failed = False
            for request in requests:
                fault = self.faults.pop(0) if self.faults else ""
                is_failed |= fault == "fail"
                pages.append(self.answer(request, is_empty=fault == "empty"))
                for conversation, wait, late in events.pop(0) if events else ():
                    shown_late = late if self.polls and self.is_listed else min(late, 0)
                    new = account.receive(f"conv_{conversation}", wait=wait, late=shown_late)
                    if not self.polls or not self.is_listed:
                        self.early.add(new)
            if is_failed:
                continue  # the driver asks for all of them again
            has_shown |= any(page.data for page in pages)
            given = [item.message if isinstance(item, NewMessage) else item for item in paginator.receive(pages)]
            batch += given
            self.out += given

    def answer(self, request: Any, *, is_empty: bool) -> Any:
        account = self.case.account
        self.date = printed(account.now, 0) if self.case.tells_time else None
        nothing: Any = Page(data=(), has_more=False, total=0 if account.behavior.has_total else None)
        if isinstance(request, OffsetRequest):
            if request.offset == 0:
                account.hidden = self.hiding
                if self.hiding is not None:
                    hidden = account.states.get(self.hiding)
                    self.skipped |= set(hidden.messages if hidden is not None else [])
                else:
                    self.too_late |= {name for at, name in self.skipped if account.now - at > OVERLAP}
                    self.skipped = set()
            page = account.list(request.limit, request.offset)
            if "list" in self.read_now:  # it breaks off in the middle
                is_empty = is_empty and account.now - self.missing.setdefault("list", account.now) <= OVERLAP
                self.empty_now |= {"list"} if is_empty else set()
            self.read_now.add("list")
            return nothing if is_empty else evolve(page, data=tuple(map(self.listed, page.data)))
        name = request.conversation_id if isinstance(request, MessagesRequest) else "conv_0"
        cursor = request.cursor if isinstance(request, MessagesRequest) else request
        messages = account.messages(name, cursor.limit, self.read(cursor.before), self.read(cursor.after))
        self.read_now.add(name)
        if not self.of_all and not self.polls and self.case.after is not None:
            is_empty = False  # what is read of a history at the beginning is believed
        if is_empty and account.now - self.missing.setdefault(name, account.now) <= OVERLAP:
            self.empty_now.add(name)
            return nothing
        return messages

    def listed(self, conversation: Conversation) -> Conversation:
        last = conversation.last_message_at
        digits = self.case.list_digits
        return conversation if last is None else evolve(conversation, last_message_at=printed(micros_of(last), digits))

    def read(self, cursor: datetime | None) -> datetime | None:
        return cursor if cursor is None else printed(micros_of(cursor), self.case.reads)


def check(case: Case, *, of_all: bool) -> None:
    """Drive a walk, and hold what came out against the promise."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (cursor, follow, offset, polling, watch):
            patch.setattr(module, "MAX_MESSAGES", 12, raising=False)
            patch.setattr(module, "MAX_CONVERSATIONS", 8, raising=False)
        for module in (follow, polling, watch):
            patch.setattr(module, "LOOKBACK", 3, raising=False)
        for module in (follow, polling, watch):
            patch.setattr(module, "PAGE_HEADROOM", 3, raising=False)
        patch.setattr(watch, "MAX_CONCURRENT_READS", 2)
        there = {name for state in case.account.states.values() for _, name in state.messages}
        began = case.account.now
        run = Run(case, of_all)
        try:
            run.go(case.paginator(of_all=of_all, clock=lambda: case.account.now / 1e6, server_time=lambda: run.date))
        except PaginationError:
            # More in one instant than a page can hold, as finely as the server reads cursors.
            assume(case.reads == 6)
            raise
    names = [message.id for message in run.out]
    assert len(set(names)) == len(names), "repeated"
    everything = {
        message.id: message
        for name, state in case.account.states.items()
        if of_all or name == "conv_0"
        for message in state.all()
    }
    if case.after is None:
        promised = set(everything) - there
    else:
        promised = {name for name, message in everything.items() if is_after(message, case.after)}
        if case.after.message_id is not None:
            promised |= set(everything) - there - run.early
    unsure = run.early if case.after is not None and case.after.message_id is not None else set()
    if case.after is None and any(
        at > began for state in case.account.states.values() for at, _ in state.messages if _ in there
    ):
        promised -= run.early  # they lie before the newest message of the first step, which is dated in the future
        unsure = unsure | run.early
    if case.faults or case.hidden:
        # What was not shown at the first moment, and is no older than the overlap, looks as what is shown late.
        unsure = unsure | {
            name for name, message in everything.items() if micros_of(message.received_at) >= began - OVERLAP - MARGIN
        }
        # Nor is what is shown late and dated before the start.
        start = case.after or TimeBound(printed(began, 6))
        promised = {name for name in promised if is_after(everything[name], start)}
    assert promised - set(names) - run.too_late <= (run.early if case.faults or case.hidden else set()), "lost"
    if case.tells_time or not case.hidden:
        assert set(names) - promised <= unsure, "not asked for"
    for batch in run.batches:
        assert batch == sorted(batch, key=key)
    ahead = [at for state in case.account.states.values() for at, _ in state.messages if at > case.account.now]
    if case.next_delay > OVERLAP + 1_000_000 and len(ahead) < 2:
        assert run.polls[-1] == 1, "an idle poll is one request"


@st.composite
def cases(draw: st.DrawFn, conversations: int) -> Case:
    digits = draw(st.sampled_from([0, 3, 6]))
    behavior = Behavior(
        inclusive=draw(st.sampled_from([False, False, True])),
        after_alone=draw(st.sampled_from(["oldest", "newest"])),
        message_order=draw(st.sampled_from(["newest", "oldest"])),
        timestamp_digits=digits,
        has_total=draw(st.booleans()),
        most=draw(st.sampled_from([1000, 1000, 4])),
        counts=digits < 6 or draw(st.booleans()),  # or two messages that are printed alike look like one
    )
    # The list paginator assumes that fewer move between two requests than half a page holds.
    is_small = behavior.most == 4
    silent = [] if is_small else ["conv_silent_1", "conv_silent_2"][: draw(st.sampled_from([0, 0, 1, 2]))]
    account = Account(behavior, silent=silent)
    which = st.integers(0, conversations - 1)
    for _ in range(draw(st.integers(0, 15))):
        wait = draw(WAITS)
        # Or an instant looks as one that was cut to milliseconds.
        account.receive(f"conv_{draw(which)}", wait=wait + (digits == 6 and (account.now + wait) % 1000 == 0))
    messages = sorted((m for state in account.states.values() for m in state.all()), key=key)
    after: TimeBound | None = None
    kind = draw(st.sampled_from(["now", "message", "instant"]))
    if kind != "now" and messages:
        message = draw(st.sampled_from(messages))
        after = TimeBound(message.received_at, message.id if kind == "message" else None)
    tells_time = draw(st.booleans())
    is_ahead = (conversations == 1 or (tells_time and behavior.counts)) and draw(st.booleans())
    # Where the list does not count, what a watch is shown late is not promised.
    lates = [0, 0, 0, 1, 1000, 2_000_000, OVERLAP] if conversations == 1 or behavior.counts else [0]
    if is_ahead and tells_time:
        lates += [-PREFETCH_FACTOR]
    # In one conversation only: the list paginator does not see what moves up to a place after two such.
    event = st.tuples(which, WAITS, st.sampled_from(lates)).map(lambda e: (0, *e[1:]) if e[2] < 0 else e)
    if is_ahead:
        account.receive("conv_0", late=-PREFETCH_FACTOR)
    events = draw(st.lists(st.lists(event, max_size=1 if is_small else 4), max_size=12))
    list_digits = draw(st.sampled_from([6, 6, 3, 0])) if behavior.counts else 6
    if after is None and min(behavior.timestamp_digits, list_digits) < 6:
        # A list that prints whole seconds does not tell which message of one second was there first.
        events = [[], [], [], [(0, 2_000_000, 0)], *events]
    hidden = [f"conv_{draw(which)}"] * (draw(st.sampled_from([0, 0, 0, 1, 4])) if conversations > 1 else 0)
    faults: list[str] = []
    # Where a watch begins in a conversation whose newest message is dated in the future, it must see the whole of it.
    if after is not None or (tells_time and not (is_ahead and conversations > 1)):
        kinds = ["", "", "", "fail"] if hidden else ["", "", "", "fail", "empty", "empty"]
        faults = draw(st.lists(st.sampled_from(kinds), max_size=30))
    return Case(
        account,
        after,
        events,
        draw(st.sampled_from([1, 1000, 700_000, 6_000_000])),
        hidden,
        faults,
        tells_time,
        list_digits,
        6 if behavior.inclusive else draw(st.sampled_from([6, 6, behavior.timestamp_digits])),
    )


@frozen
class Careless(Case):
    """The same with walks that look back at nothing."""

    def paginator(self, *, of_all: bool, clock: Any, server_time: Any) -> FollowPaginator | WatchPaginator:
        paginator = super().paginator(of_all=of_all, clock=clock, server_time=server_time)
        paginator._overlap = timedelta(0)
        return paginator


@MANY
@given(cases(1))
def test_a_followed_conversation_gives_each_message_once(case: Case) -> None:
    check(case, of_all=False)


@MANY
@given(cases(12))
def test_a_watched_account_gives_each_message_once(case: Case) -> None:
    check(case, of_all=True)


@pytest.mark.parametrize("of_all", [False, True])
def test_walks_that_look_back_at_nothing_are_refuted(of_all: bool) -> None:
    @settings(MANY, max_examples=5000, phases=[Phase.generate], database=None)  # it ends at the first, within 200
    @given(cases(12 if of_all else 1))
    def careless(case: Case) -> None:
        check(Careless(case.account, case.after, case.events, case.next_delay), of_all=of_all)

    with pytest.raises(AssertionError, match=r"lost|repeated|not asked for"):
        careless()


@MANY
@given(cases(4), st.lists(st.integers(1, 6), max_size=8))
def test_a_watch_that_begins_again_behind_any_message_goes_on_there(case: Case, ends: list[int]) -> None:
    account = case.account
    for conversation in range(4):
        account.receive(f"conv_{conversation}")
    start = max((m for state in account.states.values() for m in state.all()), key=key)
    account.now += 2_000_000
    events = [[(conversation, wait, 0) for conversation, wait, _ in few] for few in case.events]
    there = {name for state in account.states.values() for _, name in state.messages}
    out: list[Message] = []
    last = start
    for end in [*ends, None]:
        paginator = WatchPaginator(
            after=TimeBound(last.received_at, last.id),
            overlap=timedelta(0),
            clock=lambda: 0.0,
            server_time=lambda: None,
        )
        quiet = 0
        while quiet < 3 and (end is None or end > 0):
            requests = paginator.next_requests()
            if not requests:
                quiet += 0 if events else 1
                paginator.receive(())
                continue
            pages = []
            for request in requests:
                pages.append(Run(case, of_all=True).answer(request, is_empty=False))
                for conversation, wait, _ in events.pop(0) if events else ():
                    # Whole seconds apart, so that no two of them are printed alike.
                    account.receive(f"conv_{conversation}", wait=wait + 1_000_000)
            for new in paginator.receive(pages):
                if end != 0:
                    out.append(new.message)
                    last, end = new.message, None if end is None else end - 1
    everything = {name for state in account.states.values() for _, name in state.messages}
    assert sorted(message.id for message in out) == sorted(everything - there)
    assert out == sorted(out, key=key)


def test_rests_grow_to_their_longest_and_begin_anew_with_each_message() -> None:
    backoff = PollBackoff(2.0, 30.0, rand=lambda: 0.0)
    assert [backoff.next_delay(has_new=False) for _ in range(9)] == [2, 3, 4.5, 6.75, 10.125, 15.1875, 22.78125, 30, 30]
    assert [backoff.next_delay(has_new=news) for news in (True, True, False)] == [2, 2, 3]


def test_rests_are_drawn_apart_and_never_longer_than_said() -> None:
    backoff = PollBackoff(10.0, 10.0)
    rests = {backoff.next_delay(has_new=False) for _ in range(100)}
    assert len(rests) > 50
    assert all(8 <= next_delay <= 10 for next_delay in rests)
