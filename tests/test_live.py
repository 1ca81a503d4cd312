"""Live walks against the model of an account that moves: nothing lost, nothing repeated, and few requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agentphone import Message, NewMessage, _live, _pagination
from agentphone._live import FollowWalk, MessagesRequest, Pace, WatchWalk, is_beyond
from agentphone._pagination import Bound, OffsetRequest
from tests.model import Account, Reading, key

MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
WAITS = st.sampled_from([1, 1, 2, 999, 1000, 300_000, 1_000_000, 5_000_000])
"""Microseconds between one message and the next."""
OVERLAP = 3_000_000
AHEAD = 3_600_000_000
ENDLESS = 3000

Event = tuple[int, int, int]
"""A message: in which conversation, after how many microseconds, and how late it is shown."""


@frozen
class Case:
    """An account as it is at first, how it is read, and what comes in behind each request."""

    account: Account
    after: Bound | None
    events: Sequence[Sequence[Event]]
    rest: int = 1000
    """Microseconds between two polls."""
    hidden: Sequence[str] = ()
    """Which conversation the list leaves out, poll by poll."""

    def walk(self, *, of_all: bool, clock: Any) -> FollowWalk | WatchWalk:
        kind = WatchWalk if of_all else FollowWalk
        return kind(after=self.after, overlap=timedelta(microseconds=OVERLAP), clock=clock)


@define
class Run:
    """Drives a live walk until nothing comes any more, and keeps what it gave."""

    case: Case
    of_all: bool
    time: float = 0.0
    out: list[Message] = field(factory=list)
    batches: list[list[Message]] = field(factory=list)
    polls: list[int] = field(factory=list)
    """The requests that each poll took."""
    early: set[str] = field(factory=set)
    """What came in while the first poll was under way."""

    def go(self, walk: FollowWalk | WatchWalk) -> None:
        account, events = self.case.account, list(self.case.events)
        quiet = 0
        began = account.requests
        batch: list[Message] = []
        hidden = iter(self.case.hidden)
        while quiet < 4:
            assert account.requests < ENDLESS, "a poll does not end"
            requests = walk.next_requests()
            if not requests:
                self.polls.append(account.requests - began)
                began = account.requests
                self.batches.append(batch)
                quiet = 0 if batch or events else quiet + 1
                self.time += self.case.rest / 1e6
                account.now += self.case.rest  # the same clock
                batch = []
                account.hidden = next(hidden, None)
                quiet = 0 if account.hidden else quiet
                walk.receive(())
                continue
            pages = []
            for request in requests:
                pages.append(self.answer(request))
                for conversation, wait, late in events.pop(0) if events else ():
                    shown_late = late if self.polls else 0
                    new = account.receive(f"conv_{conversation}", wait=wait, late=shown_late)
                    if not self.polls:
                        self.early.add(new)
            given = [item.message if isinstance(item, NewMessage) else item for item in walk.receive(pages)]
            batch += given
            self.out += given

    def answer(self, request: Any) -> Any:
        account = self.case.account
        if isinstance(request, OffsetRequest):
            return account.list(request.limit, request.offset)
        name = request.conversation_id if isinstance(request, MessagesRequest) else "conv_0"
        cursor = request.cursor if isinstance(request, MessagesRequest) else request
        return account.messages(name, cursor.limit, cursor.before, cursor.after)


def check(case: Case, *, of_all: bool) -> None:
    """Drive a walk, and hold what came out against the promise."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_pagination, _live):
            patch.setattr(module, "MAX_MESSAGES", 12)
            patch.setattr(module, "MAX_CONVERSATIONS", 8)
        patch.setattr(_live, "REMEMBERED", 3)
        patch.setattr(_live, "SPARE", 3)
        patch.setattr(_live, "AT_ONCE", 2)
        there = {name for thread in case.account.threads.values() for _, name in thread.messages}
        run = Run(case, of_all)
        run.go(case.walk(of_all=of_all, clock=lambda: run.time))
    names = [message.id for message in run.out]
    assert len(set(names)) == len(names), "repeated"
    everything = {
        message.id: message
        for name, thread in case.account.threads.items()
        if of_all or name == "conv_0"
        for message in thread.all()
    }
    if case.after is None:
        promised = set(everything) - there
    else:
        promised = {name for name, message in everything.items() if is_beyond(message, case.after)}
        if case.after.message_id is not None:
            promised |= set(everything) - there - run.early
    unsure = run.early if case.after is not None and case.after.message_id is not None else set()
    if not case.hidden:
        assert promised - set(names) <= set(), "lost"
        assert set(names) - promised <= unsure, "not asked for"
    for batch in run.batches:
        assert batch == sorted(batch, key=key)
    if case.rest > OVERLAP + 1_000_000:
        assert run.polls[-1] == 1, "an idle poll is one request"


@st.composite
def cases(draw: st.DrawFn, conversations: int) -> Case:
    digits = draw(st.sampled_from([0, 3, 6]))
    reading = Reading(
        inclusive=draw(st.sampled_from([False, False, True])),
        after_alone=draw(st.sampled_from(["oldest", "newest"])),
        listed=draw(st.sampled_from(["newest", "oldest"])),
        digits=digits,
        has_total=draw(st.booleans()),
        most=draw(st.sampled_from([1000, 1000, 4])),
        counts=digits < 6 or draw(st.booleans()),  # or two messages that are printed alike look like one
    )
    account = Account(reading, silent=["conv_silent_1", "conv_silent_2"][: draw(st.sampled_from([0, 0, 1, 2]))])
    which = st.integers(0, conversations - 1)
    for _ in range(draw(st.integers(0, 15))):
        account.receive(f"conv_{draw(which)}", wait=draw(WAITS))
    messages = sorted((m for thread in account.threads.values() for m in thread.all()), key=key)
    after: Bound | None = None
    kind = draw(st.sampled_from(["now", "message", "instant"]))
    if kind != "now" and messages:
        message = draw(st.sampled_from(messages))
        after = Bound(message.received_at, message.id if kind == "message" else None)
    is_ahead = conversations == 1 and draw(st.booleans())  # a watch may repeat or miss beside one
    # Where the list does not count, what a watch is shown late is not promised.
    lates = [0, 0, 0, 1, 1000, 2_000_000, OVERLAP] if conversations == 1 or reading.counts else [0]
    event = st.tuples(which, WAITS, st.sampled_from(lates))
    if is_ahead:
        account.receive("conv_0", late=-AHEAD)
    events = draw(st.lists(st.lists(event, max_size=4), max_size=12))
    if after is None and reading.digits < 6:
        # A list that prints whole seconds does not tell which message of one second was there first.
        events = [[], [], [], [(0, 2_000_000, 0)], *events]
    may_hide = conversations > 1 and not is_ahead
    hidden = [f"conv_{draw(which)}"] * (draw(st.sampled_from([0, 0, 0, 1, 4])) if may_hide else 0)
    return Case(account, after, events, draw(st.sampled_from([1, 1000, 700_000, 6_000_000])), hidden)


@frozen
class Careless(Case):
    """The same with walks that look back at nothing."""

    def walk(self, *, of_all: bool, clock: Any) -> FollowWalk | WatchWalk:
        walk = super().walk(of_all=of_all, clock=clock)
        walk._overlap = timedelta(0)
        return walk


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
        check(Careless(case.account, case.after, case.events, case.rest), of_all=of_all)

    with pytest.raises(AssertionError, match=r"lost|repeated|not asked for"):
        careless()


@MANY
@given(cases(4), st.lists(st.integers(1, 6), max_size=8))
def test_a_watch_that_begins_again_behind_any_message_goes_on_there(case: Case, ends: list[int]) -> None:
    account = case.account
    for conversation in range(4):
        account.receive(f"conv_{conversation}")
    start = max((m for thread in account.threads.values() for m in thread.all()), key=key)
    account.now += 2_000_000
    events = [[(conversation, wait, 0) for conversation, wait, _ in few] for few in case.events]
    there = {name for thread in account.threads.values() for _, name in thread.messages}
    out: list[Message] = []
    last = start
    for end in [*ends, None]:
        walk = WatchWalk(after=Bound(last.received_at, last.id), overlap=timedelta(0), clock=lambda: 0.0)
        quiet = 0
        while quiet < 3 and (end is None or end > 0):
            requests = walk.next_requests()
            if not requests:
                quiet += 0 if events else 1
                walk.receive(())
                continue
            pages = []
            for request in requests:
                pages.append(Run(case, of_all=True).answer(request))
                for conversation, wait, _ in events.pop(0) if events else ():
                    # Whole seconds apart, so that no two of them are printed alike.
                    account.receive(f"conv_{conversation}", wait=wait + 1_000_000)
            for new in walk.receive(pages):
                if end != 0:
                    out.append(new.message)
                    last, end = new.message, None if end is None else end - 1
    everything = {name for thread in account.threads.values() for _, name in thread.messages}
    assert sorted(message.id for message in out) == sorted(everything - there)
    assert out == sorted(out, key=key)


def test_rests_grow_to_their_longest_and_begin_anew_with_each_message() -> None:
    pace = Pace(2.0, 30.0, rand=lambda: 0.0)
    assert [pace.rest(has_news=False) for _ in range(9)] == [2, 3, 4.5, 6.75, 10.125, 15.1875, 22.78125, 30, 30]
    assert [pace.rest(has_news=news) for news in (True, True, False)] == [2, 2, 3]


def test_rests_are_drawn_apart_and_never_longer_than_said() -> None:
    pace = Pace(10.0, 10.0)
    rests = {pace.rest(has_news=False) for _ in range(100)}
    assert len(rests) > 50
    assert all(8 <= rest <= 10 for rest in rests)
