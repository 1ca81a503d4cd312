"""Pages that contradict each other: everything that was read is returned, then PaginationError is raised."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from agentphone import Conversation, Message, Page, PaginationError
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.offset import OffsetPaginator
from agentphone._paging.requests import CursorRequest, OffsetRequest
from tests.paging.message_cases import server_with
from tests.paging.support import run_to_end
from tests.support.model import START


def conversation(number: int) -> Conversation:
    return Conversation(id=f"conv_{number}", phone_number="+1", participant="+1", last_message_at=START)


SAME_PAGE = tuple(conversation(number) for number in range(100))


@pytest.mark.parametrize("total", [None, 100, 10_000])
@pytest.mark.parametrize(
    "page",
    [
        lambda request: (),
        lambda request: SAME_PAGE[: request.limit],
        lambda request: SAME_PAGE[request.offset : request.offset + request.limit],
        lambda request: tuple(reversed(SAME_PAGE[: request.limit])),
    ],
    ids=["empty", "the same", "empty at the end", "the same, backwards"],
)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_list_with_endless_has_more_is_an_error(
    page: Callable[[OffsetRequest], tuple[Conversation, ...]], total: int | None, concurrency: int
) -> None:
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50, concurrency=concurrency)
    items, error, requests = run_to_end(paginator, lambda request: Page(data=page(request), has_more=True, total=total))
    assert "contradict each other" in str(error)
    assert requests < 60
    assert len({item.id for item in items}) == len(items)


def test_empty_list_with_has_more_is_requested_six_times() -> None:
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50)
    _, error, requests = run_to_end(paginator, lambda _: Page(data=(), has_more=True))
    assert "6 pages in a row, the last at offset 0, held nothing new" in str(error)
    assert requests == 6


def test_items_of_later_concurrent_pages_are_returned_before_the_error() -> None:
    """The first six concurrent pages are empty, and those after them are not."""
    whole = [conversation(number) for number in range(1000)]
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50, concurrency=8)

    def respond(request: OffsetRequest) -> Page[Conversation]:
        is_gap = 50 <= request.offset < 400
        data = () if is_gap else tuple(whole[request.offset : request.offset + request.limit])
        return Page(data=data, has_more=True, total=1000)

    items, error, _ = run_to_end(paginator, respond)
    assert "contradict each other" in str(error)
    assert items == whole[:50] + whole[400:]


def test_too_large_total_is_followed_only_while_pages_bring_something_new() -> None:
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50)
    page = Page(data=SAME_PAGE[:50], has_more=False, total=10**9)
    items, error, requests = run_to_end(paginator, lambda _: page)
    assert (len(items), error) == (50, None)
    assert requests <= 3 * 3  # an item that appears twice may mean that the list moves


def test_short_page_without_has_more_is_followed_if_the_total_says_so() -> None:
    whole = [conversation(number) for number in range(120)]
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50)

    def respond(request: OffsetRequest) -> Page[Conversation]:
        return Page(data=tuple(whole[request.offset : request.offset + 30]), has_more=False, total=120)

    items, error, _ = run_to_end(paginator, respond)
    assert (items, error) == (whole, None)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("messages", [0, 1, 200])
def test_ignored_cursors_are_an_error_after_what_was_read(messages: int, oldest_first: bool) -> None:
    whole = [server_with((0, 1)).message((second * 10**6, f"m{second:03}")) for second in range(messages)]
    page = Page(data=tuple(whole), has_more=True)
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=200)
    items, error, requests = run_to_end(paginator, lambda _: page)
    assert "contradict each other" in str(error)
    assert requests < 60
    assert items == (whole if oldest_first else whole[::-1])


def read_with_empty_pages(
    first: int, *, times: int = 1000, has_more: bool = True, oldest_first: bool = False, after_alone: str = "oldest"
) -> tuple[list[int], PaginationError | None, int]:
    """Read 250 messages, numbered from the first that is wanted. Some pages are empty, from the `first` request on."""
    server = server_with(*((second * 1_000_000, 1) for second in range(250)), after_alone=after_alone)
    numbers = itertools.count(1)

    def respond(request: CursorRequest) -> Page[Message]:
        if first <= next(numbers) < first + times:
            return Page(data=(), has_more=has_more)
        return server.page(request.limit, request.before, request.after)

    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=7)
    items, error, requests = run_to_end(paginator, respond)
    whole = server.all() if oldest_first else server.all()[::-1]
    return [whole.index(item) for item in items], error, requests


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("first", [1, 5, 20])
@pytest.mark.parametrize("times", [1, 4])
def test_page_that_is_empty_for_a_moment_is_requested_again(
    times: int, first: int, after_alone: str, oldest_first: bool
) -> None:
    numbers, error, _ = read_with_empty_pages(first, times=times, oldest_first=oldest_first, after_alone=after_alone)
    assert (numbers, error) == (list(range(250)), None)


@pytest.mark.parametrize(
    ("oldest_first", "after_alone", "first", "place", "most"),
    [
        (False, "oldest", 1, "", 5),
        (False, "oldest", 5, " at 2025-01-15T12:03:43+00:00", 11),
        (True, "oldest", 1, " at 1900-01-01T00:00:00+00:00", 5),
        (True, "oldest", 5, " at 2025-01-15T12:00:19.999999+00:00", 15),
        (True, "newest", 20, " at 2025-01-15T12:02:12+00:00", 75),
    ],
)
def test_pages_that_stay_empty_are_an_error_at_the_first(
    oldest_first: bool, after_alone: str, first: int, place: str, most: int
) -> None:
    """Only the first is requested five times."""
    _, error, requests = read_with_empty_pages(first, oldest_first=oldest_first, after_alone=after_alone)
    assert str(error) == (
        f"The pages of messages{place} contradict each other: a page says hasMore but holds nothing new, or it lacks"
        " messages that it must hold. The API or a proxy is at fault."
    )
    assert requests <= most


def test_conversation_that_is_deleted_meanwhile_ends() -> None:
    numbers, error, requests = read_with_empty_pages(5, has_more=False)
    assert (numbers, error) == (list(range(28)), None)
    assert requests <= 7


@pytest.mark.parametrize("then", ["empty", "first", "last"])
@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("page_size", [7, 200])
def test_endless_has_more_after_the_last_message_is_an_error_after_all_messages(
    page_size: int, after_alone: str, oldest_first: bool, limit: int | None, then: str
) -> None:
    """After the end, the API returns an empty page, or the first or last page again, and says hasMore."""
    server = server_with(*((second * 1_000_000, 1) for second in range(250)), after_alone=after_alone)

    def respond(request: CursorRequest) -> Page[Message]:
        page = server.page(request.limit, request.before, request.after)
        if not page.data and then == "first":
            page = server.page(request.limit, None, None)
        elif not page.data and then == "last":
            page = Page(data=tuple(map(server.message, server.messages[: request.limit])), has_more=True)
        return Page(data=page.data, has_more=True)

    paginator = CursorPaginator(limit=limit, before=None, after=None, oldest_first=oldest_first, page_size=page_size)
    items, error, requests = run_to_end(paginator, respond)
    assert "contradict each other" in str(error)
    assert items == (server.all() if oldest_first else server.all()[::-1])
    assert requests < 2 * 250 / page_size + 60
