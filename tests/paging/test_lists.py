"""The list paginator while the list moves: kinds of moves, concurrent pages, and how many requests it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from random import Random
from typing import Any

import pytest

from agentphone import Conversation, Page
from agentphone._paging.offset import OffsetPaginator
from agentphone._paging.requests import OffsetRequest
from tests.paging.support import MAX_REQUESTS, run_to_end
from tests.support.model import FakeList, ServerBehavior


def numbered(count: int, **behavior: Any) -> FakeList:
    """Create a list of so many conversations, a second apart."""
    server = FakeList(ServerBehavior(**behavior))
    for _ in range(count):
        server.receive(wait=1_000_000)
    return server


def read_while_it_moves(
    server: FakeList, moves: Mapping[int, Callable[[], Any]], *, page_size: int = 100, concurrency: int = 1
) -> tuple[set[str], int]:
    """Read a whole list while it moves.

    Args:
        server: The list.
        moves: What to do after which request, counted from 1.
        page_size: The size of a page.
        concurrency: How many requests are in flight at once.

    Returns:
        The ids of the conversations, and the number of requests.
    """
    paginator = OffsetPaginator(limit=None, offset=0, page_size=page_size, concurrency=concurrency)
    numbers = iter(range(1, MAX_REQUESTS + 1))
    items, error, requests = run_to_end(
        paginator,
        lambda request: server.page(request.limit, request.offset),
        lambda: moves.get(next(numbers), lambda: None)(),
    )
    assert error is None
    ids = [item.id for item in items]
    assert len(set(ids)) == len(ids)
    return set(ids), requests


@pytest.mark.parametrize("has_total", [True, False])
@pytest.mark.parametrize("future", [1, 2, 30])
def test_future_dates_hide_no_conversation_that_moves_to_the_front(future: int, has_total: bool) -> None:
    server = numbered(2000, has_total=has_total)
    for number in range(future):
        server.receive(f"conv_{1000 + number}", late=-(10**12))

    def jump(count: int) -> None:
        for _ in range(count):  # the ones at the end of the list
            server.receive(min(server.last, key=lambda name: server.last[name] or 0), wait=1_000_000)

    ids, requests = read_while_it_moves(server, {number: lambda: jump(16) for number in range(1, 11)})
    assert ids == set(server.last)
    assert requests <= (20 + 5 if future == 1 and has_total else 3 * 22 + 5)


def test_move_while_the_front_is_read_again_needs_no_second_pass() -> None:
    """The front is two pages long by then, and what moves before the second one is in neither."""
    server = numbered(2000)

    def jump() -> None:
        for _ in range(16):  # the ones at the end of the list
            server.receive(min(server.last, key=lambda name: server.last[name] or 0), wait=1_000_000)

    moves = {**dict.fromkeys(range(1, 11), jump), 21: lambda: server.receive("conv_0", wait=1_000_000)}
    ids, requests = read_while_it_moves(server, moves)
    assert ids == set(server.last)
    assert requests == 20 + 2 + 1


@pytest.mark.parametrize("has_total", [True, False])
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("after", [1, 3, 7])
def test_conversation_that_moves_to_the_middle_is_returned(after: int, concurrency: int, has_total: bool) -> None:
    server = numbered(1000, has_total=has_total)
    place = server.last[f"conv_{1000 - 50 * after}"]
    assert place is not None
    late = server.now + 1 - place - 1  # right before the 50th conversation for each page read
    ids, requests = read_while_it_moves(
        server, {after: lambda: server.receive("conv_20", late=late)}, concurrency=concurrency
    )
    assert ids == set(server.last)
    assert requests <= 2 * (11 + 1)


def test_move_to_the_middle_is_detected_among_moves_to_the_front() -> None:
    server = numbered(1000)
    place = server.last["conv_850"]
    assert place is not None

    def move() -> None:
        server.receive("conv_10", wait=1_000_000)
        server.receive("conv_20", late=server.now + 1 - place - 1)

    ids, _ = read_while_it_moves(server, {3: move, 5: lambda: server.receive("conv_30"), 6: lambda: server.receive()})
    assert {f"conv_{number}" for number in range(1000)} <= ids


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("count", [1, 40])
def test_list_that_moves_at_the_front_is_read_about_once(count: int, concurrency: int) -> None:
    """The total accounts for moves to the front. They are no reason to read the whole list again."""
    server, random = numbered(2000), Random(1)

    def move() -> None:
        for _ in range(count):
            server.receive(f"conv_{random.randrange(2000)}", wait=1000)

    moves = dict.fromkeys(range(1, MAX_REQUESTS), move)
    ids, requests = read_while_it_moves(server, moves, concurrency=concurrency)
    assert ids == set(server.last)
    # With concurrent pages it is read twice, the second time with overlapping pages.
    assert requests <= (20 if concurrency == 1 else 20 + 22 + 2) * (1 if count == 1 else 1.7) + 6


@pytest.mark.parametrize("has_total", [True, False])
def test_list_with_endless_late_messages_ends(has_total: bool) -> None:
    server, random = numbered(1000, has_total=has_total), Random(1)

    def move() -> None:
        server.receive(f"conv_{random.randrange(1000)}", wait=1000, late=random.randrange(1000) * 1_000_000)
        server.receive(f"conv_{random.randrange(1000)}", wait=1000)

    ids, requests = read_while_it_moves(server, dict.fromkeys(range(1, MAX_REQUESTS), move))
    assert ids == set(server.last)
    assert requests <= 3 * (12 + 2)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("has_total", [True, False])
@pytest.mark.parametrize(("limit", "jumps"), [(101, 1), (105, 2), (105, 5), (250, 20)])
def test_limit_just_over_a_page_is_reached_in_a_busy_list(
    limit: int, jumps: int, has_total: bool, concurrency: int
) -> None:
    """More conversations move than remain to be requested. That must not count as contradictory pages."""
    server = FakeList(ServerBehavior(has_total=has_total))
    for _ in range(400):
        server.receive()
    paginator = OffsetPaginator(limit=limit, offset=0, page_size=100, concurrency=concurrency)

    def move() -> None:
        for _ in range(jumps):
            server.receive(min(server.last, key=lambda name: server.last[name] or 0))

    items, error, requests = run_to_end(paginator, lambda request: server.page(request.limit, request.offset), move)
    assert error is None
    assert len({item.id for item in items}) == len(items) == limit
    assert requests <= 10


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("page_size", [7, 100])
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 10, 30])
def test_n_pages_that_do_not_move_take_at_most_n_plus_one_requests(
    pages: int, page_size: int, concurrency: int, digits: int
) -> None:
    server = FakeList(ServerBehavior(timestamp_digits=digits))
    for _ in range(pages * page_size):
        server.receive()
    whole = server.page(10**6, 0).data
    paginator = OffsetPaginator(limit=None, offset=0, page_size=page_size, concurrency=concurrency)

    def respond(request: OffsetRequest) -> Page[Conversation]:
        data = whole[request.offset : request.offset + request.limit]
        return Page(data=data, has_more=request.offset + len(data) < len(whole), total=len(whole))

    items, error, requests = run_to_end(paginator, respond)
    assert error is None
    assert tuple(items) == whole
    assert requests <= max(1, pages) + 1


@pytest.mark.parametrize(("max_page_size", "has_total", "max_requests"), [(50, True, 40 + 2), (50, False, 41 + 2)])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_pages_smaller_than_requested_take_no_more_requests_if_concurrent(
    concurrency: int, max_page_size: int, has_total: bool, max_requests: int
) -> None:
    server = numbered(2000, max_page_size=max_page_size, has_total=has_total)
    ids, requests = read_while_it_moves(server, {}, concurrency=concurrency)
    assert ids == set(server.last)
    assert requests <= max_requests


@pytest.mark.parametrize("concurrency", [4, 8])
def test_concurrent_pages_without_new_items_are_no_contradiction(concurrency: int) -> None:
    """More conversations move to the front while the pages are in flight than six pages hold."""
    server = numbered(100)
    jumps = {10 + number: partial(server.receive, f"conv_{number}") for number in range(12)}
    ids, _ = read_while_it_moves(server, jumps, page_size=1, concurrency=concurrency)
    assert ids == set(server.last)


def test_list_that_moves_faster_than_it_is_read_ends() -> None:
    """Each time that the front is read again, more than a page of conversations has moved there."""
    server = numbered(1000)
    from_the_end = cycle(list(server.last))

    def move() -> None:
        for _ in range(150):
            server.receive(next(from_the_end), wait=1000)

    ids, requests = read_while_it_moves(server, dict.fromkeys(range(1, MAX_REQUESTS), move))
    assert ids <= set(server.last)
    assert requests < 150
