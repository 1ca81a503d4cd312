"""Time bounds and the order of messages: `before` and `after` as values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeVar

from attrs import frozen

from agentphone.models import Message

R = TypeVar("R")


T = TypeVar("T")


MICROSECOND = timedelta(microseconds=1)


SECOND = timedelta(seconds=1)


MILLISECOND = timedelta(milliseconds=1)


BEFORE_ALL_MESSAGES = datetime(1900, 1, 1, tzinfo=UTC)


@frozen
class TimeBound:
    """Where a walk of messages begins or ends: an instant, or exactly behind one message."""

    instant: datetime
    message_id: str | None = None


def parse_bound(value: datetime | str | Message | None, name: str) -> TimeBound | None:
    """Read what a caller gives as `before` or `after`.

    Raises:
        ValueError: A date without a time, an instant without an offset, or no ISO 8601 at all.
        TypeError: It is none of the types above.
    """
    if value is None:
        return None
    if isinstance(value, Message):
        return TimeBound(value.received_at, value.id)
    if not isinstance(value, str | datetime):
        raise TypeError(f"{name} is an aware datetime, an ISO 8601 string or a Message, not {type(value).__name__}")
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} is not ISO 8601: {value!r}") from None
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise ValueError(f"{name} needs a time and an offset from UTC, so that it means one instant: {value!r}")
    try:
        return TimeBound(instant.astimezone(UTC))
    except OverflowError:
        raise ValueError(f"{name} lies outside the years 1 to 9999 in UTC: {value!r}") from None


def clamped_add(instant: datetime, by: timedelta) -> datetime:
    """Add to an instant, as far as the calendar goes: the years 1 and 9999 stand for nothing and for ever."""
    try:
        return instant + by
    except OverflowError:
        return (datetime.max if by > timedelta(0) else datetime.min).replace(tzinfo=UTC)


def key(item: Message) -> tuple[datetime, str]:
    return item.received_at, item.id
