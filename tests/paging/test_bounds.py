"""The arguments `before` and `after`: what they accept, and the errors for everything else."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from agentphone._paging.bounds import MICROSECOND, SECOND, TimeBound, clamped_add, is_after, parse_bound
from tests.support.model import START, FakeConversation

ANY_BOUND = "after must be an aware datetime, an ISO 8601 string, a Message or a Cursor"


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (None, None),
        (START, TimeBound(START)),
        (START.astimezone(timezone(timedelta(hours=2))), TimeBound(START)),
        ("2025-01-15T12:00:00Z", TimeBound(START)),
        ("2025-01-15T14:00:00+02:00", TimeBound(START)),
        (FakeConversation().message((0, "msg_1")), TimeBound(START, "msg_1")),
    ],
)
def test_valid_bound(value: Any, bound: TimeBound | None) -> None:
    assert parse_bound(value, "after") == bound


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (5, TypeError, "after must be an aware datetime, an ISO 8601 string, a Message or a Cursor, got int"),
        (
            date(2025, 1, 15),
            TypeError,
            "after must be an aware datetime, an ISO 8601 string, a Message or a Cursor, got date",
        ),
        ("yesterday", ValueError, "after must be ISO 8601, got 'yesterday'"),
        ("2025-01-15", ValueError, "after must have a time and an offset from UTC, got '2025-01-15'"),
        (
            datetime(2025, 1, 15, 12),  # naive
            ValueError,
            "after must have a time and an offset from UTC, got datetime.datetime(2025, 1, 15, 12, 0)",
        ),
        (
            "0001-01-01T00:00:00+02:00",
            ValueError,
            "after must be within the years 1 to 9999 in UTC, got '0001-01-01T00:00:00+02:00'",
        ),
    ],
)
def test_invalid_bound(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        parse_bound(value, "after")
    assert str(raised.value) == text


def test_bounds_are_in_utc() -> None:
    bound = parse_bound("2025-01-15T14:00:00+02:00", "before")
    assert bound is not None
    assert bound.timestamp.tzinfo is UTC


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (TimeBound(START - MICROSECOND), True),
        (TimeBound(START), False),
        (TimeBound(START - MICROSECOND, "msg_2"), True),
        (TimeBound(START, "msg_0"), True),
        (TimeBound(START, "msg_1"), False),
        (TimeBound(START, "msg_2"), False),
        (TimeBound(START + MICROSECOND, "msg_0"), False),
    ],
)
def test_is_after(bound: TimeBound, expected: bool) -> None:
    assert is_after(FakeConversation().message((0, "msg_1")), bound) is expected


def test_sum_beyond_the_calendar_is_its_first_or_last_timestamp() -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert clamped_add(START, SECOND) - START == SECOND
    assert [clamped_add(first, -SECOND), clamped_add(last, SECOND)] == [first, last]
