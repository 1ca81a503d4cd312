"""The message paginator: groups of equal timestamps, truncated cursors, and how many requests it needs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from agentphone import Message, Page, PaginationError
from agentphone._paging.bounds import TimeBound
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.requests import CursorRequest
from tests.paging.message_cases import History, check_history, server_with
from tests.paging.support import run_to_end
from tests.support.model import START, FakeConversation, ServerBehavior, micros_of


@pytest.fixture(scope="module")
def one_a_second() -> list[Message]:
    """Return 20,000 messages, one a second."""
    return server_with(*((second * 1_000_000, 1) for second in range(20_000))).all()


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("page_size", [7, 199, 200])
@pytest.mark.parametrize("pages", [1, 2, 9, 100])
def test_n_pages_take_at_most_n_plus_two_requests(
    one_a_second: list[Message], pages: int, page_size: int, after_alone: str, oldest_first: bool
) -> None:
    """Twice as many, plus four, oldest first where `after` returns the newest messages."""
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=page_size)
    messages = one_a_second[: pages * page_size]

    def respond(request: CursorRequest) -> Page[Message]:
        # The model sorts all messages for each page. This is the same for one message a second, found by index.
        end = len(messages) if request.before is None else index_of(request.before)
        start = 0 if request.after is None else index_of(request.after + timedelta(microseconds=1))
        found = messages[start:end]
        returns_oldest = request.after is not None and after_alone == "oldest"
        page = found[: request.limit] if returns_oldest else found[-request.limit :]
        return Page(data=tuple(page), has_more=len(page) < len(found))

    def index_of(timestamp: datetime) -> int:
        seconds = -((START - timestamp) // timedelta(seconds=1))
        return min(max(0, seconds), len(messages))

    items, error, requests = run_to_end(paginator, respond)
    assert error is None
    assert items == (messages if oldest_first else messages[::-1])
    assert requests <= (2 * pages + 4 if oldest_first and after_alone == "newest" else pages + 2)


@pytest.mark.parametrize(("limit", "most"), [(1, 2), (3, 2), (200, 2), (250, 3)])
def test_limit_requests_no_more_than_is_wanted(limit: int, most: int) -> None:
    server = server_with(*((second * 1_000_000, 1) for second in range(1000)))
    sizes: list[int] = []

    def respond(request: CursorRequest) -> Page[Message]:
        sizes.append(request.limit)
        return server.page(request.limit, request.before, request.after)

    paginator = CursorPaginator(limit=limit, before=None, after=None, oldest_first=False, page_size=200)
    items, _, requests = run_to_end(paginator, respond)
    assert items == server.all()[::-1][:limit]
    assert requests <= most
    assert sizes[0] <= limit
    # Each further request reads one message again, and one beyond the limit.
    assert sum(sizes) <= limit + 2 * (requests - 1)


def old_and_busy() -> list[int]:
    """Return a history with a busy day ten years ago, and as busy a day today."""
    day = [number * 1_728_000 for number in range(50_000)]
    return [at - 10 * 365 * 86_400 * 10**6 for at in day] + day


def still_conversation(times: Sequence[int], digits: int = 6) -> Callable[[CursorRequest], Page[Message]]:
    """Respond for a conversation that does not change, by index: the model sorts all messages for each page."""
    server = FakeConversation(ServerBehavior(timestamp_digits=digits))

    def respond(request: CursorRequest) -> Page[Message]:
        end = len(times) if request.before is None else bisect_left(times, micros_of(request.before))
        start = 0 if request.after is None else bisect_right(times, micros_of(request.after))
        page = range(max(start, end - request.limit), end)
        data = tuple(server.message((times[index], f"msg_{index:06}")) for index in page)
        return Page(data=data, has_more=len(page) < end - start)

    return respond


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([number * 10**6 for number in range(100_000)], 20),
        ([number * 86_400 * 10**6 for number in range(10_000)], 12),
        (list(range(0, 10**9, 10**4)), 22),
        ([number * 10**6 for number in range(500)], 9),
        (old_and_busy(), 30),
    ],
    ids=["100,000 of a day", "10,000 days", "100 a second", "500", "ten years ago and today"],
)
@pytest.mark.parametrize("limit", [1, 5, 150])
def test_oldest_messages_are_found_by_halving_the_time(limit: int, times: list[int], most: int, digits: int) -> None:
    """Where `after` returns the newest messages."""
    paginator = CursorPaginator(limit=limit, before=None, after=None, oldest_first=True, page_size=200)
    items, error, requests = run_to_end(paginator, still_conversation(times, digits))
    assert error is None
    assert [message.id for message in items] == [f"msg_{index:06}" for index in range(limit)]
    assert requests <= most


@pytest.mark.parametrize("limit", [1, 150])
def test_messages_after_a_bound_are_found_by_halving_the_time_since(limit: int) -> None:
    """Where `after` returns the newest messages."""
    after = TimeBound(START + timedelta(seconds=98_999))
    paginator = CursorPaginator(limit=limit, before=None, after=after, oldest_first=True, page_size=200)
    respond = still_conversation([number * 10**6 for number in range(100_000)])
    items, error, requests = run_to_end(paginator, respond)
    assert error is None
    assert [message.id for message in items] == [f"msg_{index:06}" for index in range(99_000, 99_000 + limit)]
    assert requests <= 7


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("digits", [0, 6])
def test_group_that_fills_a_page_is_read_and_a_larger_one_is_an_error(
    digits: int, inclusive: bool, oldest_first: bool
) -> None:
    def read(size: int) -> tuple[list[Message], PaginationError | None, int]:
        server = server_with((0, 3), (5_000_000, size), (9_000_000, 3), timestamp_digits=digits, inclusive=inclusive)
        paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=200)
        return run_to_end(paginator, lambda request: server.page(request.limit, request.before, request.after))

    items, error, _ = read(size=200)
    assert (error, len(items)) == (None, 206)
    items, error, _ = read(size=201)
    assert len(items) == 3
    assert "2025-01-15T12:00:05" in str(error)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(
    ("digits", "stored_digits", "cursor_digits"), [(3, 3, 3), (0, 0, 0), (6, 6, 3), (3, 6, 3), (3, 3, 0)]
)
def test_more_than_a_page_between_truncated_cursors_is_an_error(
    digits: int, stored_digits: int, cursor_digits: int, inclusive: bool, after_alone: str, oldest_first: bool
) -> None:
    def read(size: int) -> tuple[list[Message], PaginationError | None, int]:
        server = server_with(
            (0, 3),
            *((5_000_100 + number, 1) for number in range(size)),
            (9_000_000, 3),
            timestamp_digits=digits,
            stored_digits=stored_digits,
            cursor_digits=cursor_digits,
            inclusive=inclusive,
            after_alone=after_alone,
        )
        paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=200)
        return run_to_end(paginator, lambda request: server.page(request.limit, request.before, request.after))

    items, error, _ = read(size=199)
    assert (error, len(items)) == (None, 205)
    items, error, requests = read(size=205)
    assert requests < 100
    if digits == 6 and oldest_first and after_alone == "oldest":
        # They are printed with different timestamps, and pages by `after` and by `before` overlap.
        assert (error, len(items)) == (None, 211)
        return
    assert "2025-01-15T12:00:05" in str(error)
    assert "no cursor" in str(error)
    # Newest first, those printed with different timestamps are returned, as far as the one page shows them.
    assert len(items) == (3 + 199 if digits == 6 and not oldest_first else 3)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("inclusive", [False, True, "before", "after"])
@pytest.mark.parametrize("cursor_digits", [0, 3])
@pytest.mark.parametrize("digits", [0, 3, 6])
def test_truncated_cursors_lose_nothing(
    digits: int, cursor_digits: int, inclusive: bool | str, after_alone: str, oldest_first: bool
) -> None:
    server = server_with(
        *((number * 400 + number // 30 * 300_000, 1) for number in range(150)),
        timestamp_digits=digits,
        cursor_digits=cursor_digits,
        inclusive=inclusive,
        after_alone=after_alone,
    )
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=7)
    items, error, requests = run_to_end(
        paginator, lambda request: server.page(request.limit, request.before, request.after)
    )
    assert error is None
    assert items == (server.all() if oldest_first else server.all()[::-1])
    assert requests < 175


def test_ten_thousand_messages_in_one_printed_second() -> None:
    server = server_with(*((index * 97, 1) for index in range(10_000)), timestamp_digits=0)
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=False, page_size=200)
    times = sorted(server.messages)

    def respond(request: CursorRequest) -> Page[Message]:
        end = len(times) if request.before is None else bisect_left(times, (micros_of(request.before), ""))
        below = times[max(0, end - request.limit) : end]
        return Page(data=tuple(map(server.message, below)), has_more=end > request.limit)

    items, error, requests = run_to_end(paginator, respond)
    assert error is None
    assert [message.id for message in items] == [
        f"msg_{index:03}" for index in sorted(range(10_000), key=lambda i: f"msg_{i:03}")
    ][::-1]
    assert requests < 3 * 50  # 50 pages hold them


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("page_size", [1, 2, 200])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
def test_bounds_at_the_ends_of_the_calendar(page_size: int, oldest_first: bool, after_alone: str) -> None:
    first, last = micros_of(datetime(1901, 1, 1, tzinfo=UTC)), micros_of(datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC))
    server = server_with((first, 2), (0, 1), (last, 2), after_alone=after_alone)
    for bound in (None, TimeBound(datetime.min.replace(tzinfo=UTC)), TimeBound(datetime.max.replace(tzinfo=UTC))):
        for before, after in ((bound, None), (None, bound)):
            history = History(server, 200, before, after, oldest_first=oldest_first, page_size=page_size)
            check_history(history)
