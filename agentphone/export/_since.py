"""Parse `since`: a timestamp, an age such as `24h`, `"yesterday"` or `"last"`. The clock is a parameter.

An age and `"yesterday"` stay text until the export begins. An interrupted export keeps the time that it began with, so
the same call, with the same text, resumes it later.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any, Literal

from agentphone._paging.bounds import MICROSECOND, clamped_add, parse_bound

LAST: Literal["last"] = "last"
YESTERDAY = "yesterday"
AGE = re.compile(r"([1-9][0-9]{0,5})([mhd])")
UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def parse_since(value: Any, name: str) -> datetime | str | None:
    """Check an argument `since`.

    Args:
        value: What the caller passed.
        name: The argument's name, for error messages.

    Returns:
        A `datetime` in UTC; or `"last"`, `"yesterday"` or an age, as they were passed; None for no bound.

    Raises:
        ValueError: It is none of them, or a timestamp without a time or an offset.
        TypeError: It is neither a `datetime` nor a string.
    """
    if value is None or (isinstance(value, str) and (value in (LAST, YESTERDAY) or AGE.fullmatch(value))):
        return value
    if not isinstance(value, str | datetime):
        raise TypeError(f"{name} must be an aware datetime or a string, got {type(value).__name__}")
    try:
        bound = parse_bound(value, name)
    except ValueError:
        if isinstance(value, datetime):
            raise
        raise ValueError(
            f"{name} must be a time with its offset such as 2025-06-01T00:00:00Z, an age such as 90m, 24h or 7d,"
            f" 'yesterday' or 'last', got {value!r}"
        ) from None
    return None if bound is None else bound.timestamp


def resolve(since: datetime | str, now: datetime) -> datetime:
    """Return the time after which messages are exported.

    Args:
        since: What `parse_since` returned, other than None and `"last"`.
        now: The current time, in UTC.

    Returns:
        The exclusive bound. For `"yesterday"` it is just before midnight in UTC, so that a message received at midnight
        is included.
    """
    if isinstance(since, datetime):
        return since
    if since == YESTERDAY:
        return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1) - MICROSECOND
    age = AGE.fullmatch(since)
    assert age is not None, "parse_since has checked it"  # noqa: S101  # would be a bug in the exporter
    return clamped_add(now, -int(age[1]) * UNITS[age[2]])
