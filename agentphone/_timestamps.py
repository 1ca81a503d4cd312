"""Timestamps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")


def parse_instant(text: str) -> datetime:
    """Parse an ISO 8601 date and time; one without an offset is in UTC.

    Raises:
        ValueError: It is no date with a time.
    """
    instant = datetime.fromisoformat(text)
    if ":" not in text and "T" not in text:
        raise ValueError(f"a date without a time: {text!r}")
    if instant.tzinfo is UTC:
        return instant
    try:
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"outside the years 1 to 9999 in UTC: {text!r}") from None
