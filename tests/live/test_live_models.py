"""The live paginators against a model of an account that changes between any two requests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import frozen
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from agentphone import Message, PaginationError
from agentphone._paging.bounds import TimeBound
from agentphone._paging.follow import FollowPaginator
from agentphone._paging.polling import TIMESTAMP_RESOLUTION
from agentphone._paging.watch import WatchPaginator
from tests.live.live_cases import Case, LivePaginators, Run, cases, check
from tests.support.long import count
from tests.support.model import FakeAccount, ServerBehavior, key

MANY = settings(max_examples=count(100, 5000), deadline=None, suppress_health_check=list(HealthCheck))


@frozen
class CarelessCase(Case):
    """The same case with a paginator that has no overlap at all: it reads nothing again."""

    def paginator(self, *, is_watch: bool, clock: Any, server_time: Any) -> LivePaginators:
        cls = WatchPaginator if is_watch else FollowPaginator
        return cls(after=self.after, overlap=-TIMESTAMP_RESOLUTION, clock=clock, server_time=server_time)


@MANY
@given(cases(1))
def test_follow_returns_each_message_once(case: Case) -> None:
    check(case, is_watch=False)


@MANY
@given(cases(12))
def test_watch_returns_each_message_once(case: Case) -> None:
    check(case, is_watch=True)


@pytest.mark.parametrize("is_watch", [False, True])
def test_careless_paginator_is_refuted(is_watch: bool) -> None:
    @settings(MANY, max_examples=5000, phases=[Phase.generate], database=None)  # it fails within about 200
    @given(cases(12 if is_watch else 1))
    def careless(case: Case) -> None:
        check(CarelessCase(case.account, case.after, case.events, case.delay), is_watch=is_watch)

    with pytest.raises(AssertionError, match=r"lost|repeated|not wanted"):
        careless()


@MANY
@example(
    # A message that arrives after the list was read must wait, although one deferred before it is released.
    Case(
        FakeAccount(ServerBehavior(has_total=False)),
        None,
        [[], [], [], [(0, 2_000_000, 0)], [], [], [(1, 1, 0)], [(0, 1, 0)]],
        delay=1,
        list_digits=3,
    ),
    [2],
)
@given(cases(4, allow_future=False), st.lists(st.integers(1, 6), max_size=8))
def test_watch_resumes_after_any_message(case: Case, ends: list[int]) -> None:
    """Each watch ends after so many messages, and the next one resumes after the last of them.

    None is dated in the future: after a message of the future, those of the present are not new.
    """
    account = case.account
    for conversation in range(4):
        account.receive(f"conv_{conversation}")
    last = account.all()[-1]
    account.now += 2_000_000
    # At least a second apart, so that no two of them have the same printed timestamp; and none is late.
    events = [[(conversation, wait + 1_000_000, 0) for conversation, wait, _ in few] for few in case.events]
    at_start = account.ids()
    run = Run(case, is_watch=True)
    items: list[Message] = []
    for end in [*ends, None]:
        paginator = WatchPaginator(
            after=TimeBound(last.received_at, last.id),
            overlap=timedelta(0),
            clock=lambda: 0.0,
            server_time=lambda: None,
        )
        idle_polls = 0
        remaining = end
        while idle_polls < 3 and (remaining is None or remaining > 0):
            requests = paginator.next_requests()
            if not requests:
                idle_polls += 0 if events else 1
                paginator.receive(())
                continue
            pages = []
            for request in requests:
                pages.append(run.respond(request, is_empty=False))
                for conversation, wait, _ in events.pop(0) if events else ():
                    account.receive(f"conv_{conversation}", wait=wait)
            try:
                released = paginator.receive(pages)
                paginator.next_requests()
            except PaginationError:
                # If the server truncates cursors, more messages than a page may have no cursor between them.
                assume(case.cursor_digits == 6)
                raise
            for new in released:
                if remaining != 0:
                    items.append(new.message)
                    last, remaining = new.message, None if remaining is None else remaining - 1
    assert sorted(message.id for message in items) == sorted(account.ids() - at_start)
    assert items == sorted(items, key=key)


def test_list_with_fewer_digits_makes_no_old_message_new() -> None:
    """The list prints an old message a millisecond earlier, exactly at the watermark of the first poll."""
    account = FakeAccount(ServerBehavior(timestamp_digits=3))
    account.receive("conv_1", wait=1000)
    account.receive("conv_0", wait=4_600_000)
    events = [[], [], [], [(1, 1_000_000, 0)]]
    check(Case(account, after=None, events=events, list_digits=0), is_watch=True)
