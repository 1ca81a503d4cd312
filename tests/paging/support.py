"""What the paging tests share: the loop that drives a paginator, and settings for random tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from agentphone import Page, PaginationError
from agentphone._paging.base import Paginator
from tests.support.long import count

MANY = settings(max_examples=count(100, 5000), deadline=None, suppress_health_check=list(HealthCheck))
UNSHRUNK = settings(MANY, max_examples=1500, phases=[Phase.generate])
MAX_REQUESTS = 1000
"""No paginator in these tests needs more requests, unless a test says so."""


def run_to_end(
    paginator: Paginator[Any, Any],
    respond: Callable[[Any], Page[Any]],
    between: Callable[[], object] = lambda: None,
    max_requests: int = MAX_REQUESTS,
) -> tuple[list[Any], PaginationError | None, int]:
    """Drive a paginator.

    Args:
        paginator: The paginator.
        respond: Returns the page for a request.
        between: Called after each request, to change the list.
        max_requests: Fail after so many requests.

    Returns:
        The items, the error, and the number of requests.
    """
    items: list[Any] = []
    count = 0
    try:
        while requests := paginator.next_requests():
            pages = []
            for request in requests:
                pages.append(respond(request))
                count += 1
                assert count < max_requests, "the paginator does not end"
                between()
            items += paginator.receive(pages)
    except PaginationError as error:
        return items, error, count
    assert paginator.is_over
    return items, None, count


def fails(check: Callable[[Any], object]) -> Callable[[Any], bool]:
    """Return a function that says whether a check fails for a case."""

    def condition(case: Any) -> bool:
        try:
            check(case)
        except AssertionError:
            return True
        return False

    return condition
