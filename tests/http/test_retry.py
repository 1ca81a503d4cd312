"""The retry policy, the `Retry-After` header and the retry budget: pure functions of their arguments."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ClientClosedError,
    DeadlineExceededError,
    ResponseDecodeError,
)
from agentphone._http.retry import RetryBudget, RetryPolicy, parse_retry_after
from tests.support.long import count

pytestmark = pytest.mark.anyio

NOW = 1_751_284_800.0  # 2025-06-30T12:00:00Z


# ---- The policy


def status_error(status: int, retry_after: float | None = None) -> APIStatusError:
    return APIStatusError("x", request="GET /", status_code=status, retry_after=retry_after)


def policy(rand: float = 0.5, max_retries: int = 3, max_retry_after: float = 60.0) -> RetryPolicy:
    return RetryPolicy(max_retries, max_retry_after, rand=lambda: rand)


CONNECTION = APIConnectionError("x", request="GET /")


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        *((status_error(status), True) for status in (408, 429, 500, 502, 503, 504)),
        *(
            (status_error(status), False)
            for status in (301, 304, 400, 401, 403, 404, 405, 409, 410, 422, 451, 501, 505)
        ),
        (CONNECTION, True),
        (APIConnectionError("x", request="GET /", permanent_advice="Set it."), False),
        (APITimeoutError("x", request="GET /"), True),
        (DeadlineExceededError("x", request="GET /"), False),
        (ResponseDecodeError("x", request="GET /", status_code=200), False),
        (ClientClosedError("x"), False),
        (AgentPhoneError("x"), False),
    ],
    ids=lambda part: type(part).__name__ + str(getattr(part, "status_code", "")),
)
def test_only_temporary_failures_are_retried(error: AgentPhoneError, is_retried: bool) -> None:
    assert (policy().delay(error, 1) is not None) is is_retried


def test_max_retries_ends_the_call() -> None:
    assert [policy(max_retries=2).delay(CONNECTION, attempt) is None for attempt in (1, 2, 3)] == [False, False, True]
    assert policy(max_retries=0).delay(CONNECTION, 1) is None


@pytest.mark.parametrize(("rand", "delays"), [(0.0, [0.0] * 7), (1.0, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0])])
def test_delay_bound_doubles_up_to_eight_seconds(rand: float, delays: list[float]) -> None:
    unlimited = policy(rand, max_retries=10_000)
    assert [unlimited.delay(CONNECTION, attempt) for attempt in range(1, 8)] == delays
    assert unlimited.delay(CONNECTION, 10_000) == delays[-1]


@pytest.mark.parametrize(
    ("retry_after", "rand", "delay"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, 0.5), (2.0, 0.0, 2.0), (2.0, 1.0, 2.5), (60.0, 0.0, 60.0), (60.0, 1.0, 60.5)],
)
def test_delay_is_retry_after_plus_jitter(retry_after: float, rand: float, delay: float) -> None:
    assert policy(rand).delay(status_error(503, retry_after), 1) == delay


@pytest.mark.parametrize("retry_after", [60.001, 3600.0, 1e300, math.inf])
def test_retry_after_above_the_maximum_ends_the_call(retry_after: float) -> None:
    assert policy().delay(status_error(429, retry_after), 1) is None


@given(st.floats(0, 1), st.integers(1, 50), st.none() | st.floats(0, 60))
def test_delay_stays_within_its_bounds(rand: float, attempt: int, retry_after: float | None) -> None:
    delay = policy(rand, max_retries=50).delay(status_error(503, retry_after), attempt)
    assert delay is not None
    minimum = retry_after or 0.0
    assert minimum <= delay <= (8.0 if retry_after is None else minimum + 0.5)


HTTP_DATE = "Mon, 30 Jun 2025 12:00:{:02d} GMT"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("5", 5.0),
        (" 7 ", 7.0),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        ("1e999", math.inf),
        ("inf", math.inf),
        ("Infinity", math.inf),
        (HTTP_DATE.format(30), 30.0),
        (HTTP_DATE.format(0), 0.0),
        ("Mon, 30 Jun 2025 11:00:00 GMT", 0.0),
        ("Mon, 30 Jun 2025 14:00:10 +0200", 10.0),
        ("Monday, 30-Jun-25 12:00:10 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", math.inf),
        ("Sat, 01 Jan 10000 00:00:00 GMT", math.inf),
        ("Mon, 30 Jun -2025 12:00:00 GMT", None),
        ("", None),
        (" ", None),
        ("-1", None),
        ("-0.001", None),
        ("-inf", None),
        ("nan", None),
        ("NaN", None),
        ("soon", None),
        ("5 seconds", None),
        ("5,6", None),
        ("0x10", None),
        ("1_000", None),
        ("2025-06-30", None),
        ("99 Foo 2025 99:99:99", None),
        ("\udcff", None),
    ],
)
def test_parse_retry_after(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        (HTTP_DATE.format(30), HTTP_DATE.format(10), 20.0),  # by the server's clock, because the local one may be ahead
        (HTTP_DATE.format(30), "Mon, 30 Jun 2025 13:00:00 GMT", 0.0),
        (HTTP_DATE.format(30), "yesterday", 30.0),
        (HTTP_DATE.format(30), "Fri, 31 Dec 99999 23:59:59 GMT", 30.0),
        ("5", HTTP_DATE.format(10), 5.0),
    ],
)
def test_retry_after_date_is_relative_to_the_date_header(header: str, date: str, seconds: float) -> None:
    assert parse_retry_after(header, NOW, date) == seconds


@settings(max_examples=count(100, 3000))
@given(
    st.text()
    | st.from_regex(
        r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d{1,3}:\d{1,3}(:\d{1,3})? ([A-Z]{1,4}|[+-]\d{1,9})?"
    )
    | st.lists(st.sampled_from(["Mon,", "30", "Jun", "2025", "12:00:00", "GMT", "-", "99999999", "+0000", ":"])).map(
        " ".join
    )
)
def test_parse_retry_after_accepts_any_text(header: str) -> None:
    seconds = parse_retry_after(header, NOW)
    assert seconds is None or seconds >= 0


# ---- The budget


def left(budget: RetryBudget, now: float) -> int:
    """Return how many retries a budget allows, and spend them."""
    return next(number for number in range(1000) if not budget.try_acquire(now))


def test_budget_refills_by_success_and_by_time() -> None:
    budget = RetryBudget(size=4, per_success=0.5, per_second=2)
    assert left(budget, 1000.0) == 4
    assert left(budget, 1000.0) == 0
    budget.record_success()
    assert left(budget, 1000.0) == 0
    budget.record_success()
    assert left(budget, 1000.0) == 1
    assert left(budget, 1001.25) == 2
    assert left(budget, 990.0) == 0  # a clock that goes back adds nothing
    assert left(budget, 9999.0) == 4
    for _ in range(100):
        budget.record_success()
    assert left(budget, 9999.0) == 4


def test_budget_of_a_client_is_a_hundred_retries() -> None:
    """Two successes, or one second, add one."""
    budget = RetryBudget()
    assert left(budget, 0.0) == 100
    for _ in range(6):
        budget.record_success()
    assert left(budget, 0.0) == 3
    assert left(budget, 5.0) == 5
