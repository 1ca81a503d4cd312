"""The paginators against models of the API that change between any two requests: no item lost, none repeated.

The largest pages are made small here, so that small examples reach the code for large groups and lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import example, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from agentphone import Conversation, Message, Page, PaginationError
from agentphone._paging.base import Paginator
from agentphone._paging.bounds import MICROSECOND, TimeBound
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.offset import OffsetPaginator
from agentphone._paging.requests import CursorRequest, OffsetRequest
from tests.paging.list_cases import ListCase, check_list, lists, random_list
from tests.paging.message_cases import History, check_history, histories, random_history, server_with
from tests.paging.support import MANY, UNSHRUNK, fails
from tests.support.long import count
from tests.support.model import START, FakeList

CASES = count(500, 20_000)


@MANY
@example(History(server_with((0, 2), (1, 1), after_alone="newest"), 2, oldest_first=True, page_size=2))
@example(History(server_with((0, 6), (1, 1), after_alone="newest"), 2, TimeBound(START, "msg_001"), oldest_first=True))
@example(
    History(server_with((0, 2), after_alone="newest", timestamp_digits=3), 3, oldest_first=True, bursts=[(1, 1000)])
)
@example(History(server_with((0, 1), (1, 1), after_alone="newest", inclusive=True), 2, oldest_first=True))
@example(History(server_with((0, 5), (1, 2), inclusive=True, timestamp_digits=0), 6))
@example(History(server_with((0, 3), inclusive="before", timestamp_digits=0), 2, oldest_first=True))
@example(History(server_with((0, 2), (1, 2), (2, 1), inclusive=True, timestamp_digits=0), 2))
@example(
    History(
        server_with((0, 5), (1, 2), (2, 1), inclusive=True, after_alone="newest"),
        2,
        TimeBound(START, "msg_001"),
        oldest_first=True,
    )
)
@example(History(server_with((0, 3), (1, 2), (1000, 2), (1999, 2), (2000, 2), (2999, 2), timestamp_digits=0), 2))
@example(History(server_with((0, 2), (998, 2), (999, 2), inclusive=True), 2))
@example(History(server_with((0, 2), timestamp_digits=3), 2, bursts=[(2, 1000)]))
@example(
    History(
        server_with((0, 1), (10**6, 2), (1_001_000, 1), (1_301_000, 2), (2_301_000, 7), timestamp_digits=3),
        2,
        oldest_first=True,
    )
)
@example(
    History(
        server_with((0, 3), (2, 8), inclusive=True),
        3,
        TimeBound(START + 2 * MICROSECOND, "msg_004"),
        oldest_first=True,
        page_size=3,
    )
)
@given(histories())
def test_every_message_is_returned_once_and_in_order(history: History) -> None:
    check_history(history)


def test_every_message_is_returned_once_in_random_histories() -> None:
    """With -s it prints what it saw."""
    seen: Counter[str] = Counter()
    for seed in range(CASES):
        try:
            error, requests = check_history(random_history(Random(seed)))
        except AssertionError as failure:
            failure.add_note(f"random_history(Random({seed}))")
            raise
        seen["ended in an error" if error else "complete"] += 1
        seen["requests"] += requests
        seen["most requests"] = max(seen["most requests"], requests)
    print(dict(seen))  # noqa: T201  # with -s


@pytest.mark.parametrize("seed", [502, 8665, 20848, 22840, 45968, 230000])
def test_histories_that_failed_once(seed: int) -> None:
    check_history(random_history(Random(seed)))


@MANY
@given(lists())
def test_every_conversation_is_returned_once(case: ListCase) -> None:
    check_list(case)


@pytest.mark.parametrize("part", range(10))
def test_every_conversation_is_returned_once_in_random_lists(part: int) -> None:
    cases = CASES // 10
    for seed in range(part * cases, (part + 1) * cases):
        try:
            check_list(random_list(seed))
        except (AssertionError, PaginationError) as error:
            raise AssertionError(f"random_list({seed}): {error}") from error


@pytest.mark.parametrize("seed", [1131, 1864, 1924])
def test_lists_that_need_every_overlap(seed: int) -> None:
    """Without the check that pages with an overlap continue each other, these lose a conversation; few others do."""
    check_list(random_list(seed))


@pytest.mark.parametrize("concurrency", [1, 4, 8])
@pytest.mark.parametrize("seed", range(12))
def test_long_moving_list_with_concurrent_pages(seed: int, concurrency: int) -> None:
    """What was read in an earlier pass says nothing about the place of a page in this one."""
    random = Random(seed)
    server = FakeList()
    for _ in range(260):
        server.receive()
    moves = [[("jump", random.randrange(260), 0), ("jump", random.randrange(260), 0)] for _ in range(60)]
    check_list(ListCase(server, 20, 20, concurrency, moves, random))


# The checks above find the faults of naive paginators


class NaiveCursorPaginator(CursorPaginator):
    """The usual way: the timestamp of the last message is the cursor of the next page."""

    def _paginate(self) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], None]:
        before = None
        while True:
            (page,) = yield (CursorRequest(limit=self._page_size, before=before),)
            self._ready += page.data
            if not page.has_more or not page.data:
                return
            before = page.data[-1].received_at


class NaiveOffsetPaginator(OffsetPaginator):
    """The usual way: the offset increases by the size of each page."""

    def _paginate(self) -> Generator[Sequence[OffsetRequest], Sequence[Page[Conversation]], None]:
        offset = 0
        while True:
            (page,) = yield (OffsetRequest(limit=self._page_size, offset=offset),)
            self._ready += page.data
            offset += len(page.data)
            if not page.has_more:
                return


@pytest.mark.parametrize(
    "behavior", [{}, {"timestamp_digits": 0}, {"inclusive": True}, {"message_order": "oldest"}], ids=str
)
def test_naive_cursor_paginator_is_refuted(behavior: dict[str, Any]) -> None:
    """The same case passes with the real paginator."""

    def naive(history: History) -> Paginator[CursorRequest, Message]:
        return NaiveCursorPaginator(
            limit=None, before=None, after=None, oldest_first=False, page_size=history.page_size
        )

    groups = st.lists(st.tuples(st.sampled_from([0, 1, 500_000, 2_000_000]), st.integers(1, 3)), max_size=5)
    cases = groups.map(lambda drawn: History(server_with(*sorted(drawn), **behavior), 3, page_size=2))
    found = find(cases, fails(lambda history: check_history(history, naive)), settings=UNSHRUNK)
    check_history(found)


@pytest.mark.parametrize("kind", ["jump", "new", "remove"])
def test_naive_offset_paginator_is_refuted(kind: str) -> None:
    def naive(case: ListCase) -> Paginator[OffsetRequest, Conversation]:
        return NaiveOffsetPaginator(limit=None, offset=0, page_size=case.page_size)

    find(lists(concurrency=1, kinds=[kind]), fails(lambda case: check_list(case, naive)), settings=UNSHRUNK)


def test_list_that_does_not_move_refutes_nothing() -> None:
    still = lists(concurrency=1).map(
        lambda case: ListCase(case.server, case.max_conversations, case.page_size, 1, (), case.order)
    )
    with pytest.raises(NoSuchExample):
        find(still, fails(check_list), settings=settings(UNSHRUNK, max_examples=30))
