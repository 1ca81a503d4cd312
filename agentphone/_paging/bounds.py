"""Time bounds: `before` and `after` as values, and the order of messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from attrs import frozen

from agentphone.models import Cursor, Message

MICROSECOND = timedelta(microseconds=1)
MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)

BEFORE_ALL_MESSAGES = datetime(1900, 1, 1, tzinfo=UTC)


@frozen
class TimeBound:
    """An exclusive bound: a timestamp, or the exact position of one message in the order of `sort_key`."""

    timestamp: datetime
    message_id: str | None = None


@frozen
class TimeRange:
    """The messages between two exclusive bounds."""

    before: TimeBound | None
    after: TimeBound | None

    def contains(self, item: Message) -> bool:
        """Return whether a message lies strictly between the bounds."""
        if self.is_past_upper(item) or self.is_past_lower(item):
            return False
        upper, lower = self.before, self.after
        if upper and upper.message_id is not None and sort_key(item) >= (upper.timestamp, upper.message_id):
            return False
        return not (lower and lower.message_id is not None and sort_key(item) <= (lower.timestamp, lower.message_id))

    def is_past_upper(self, item: Message) -> bool:
        """Return whether all messages with this message's timestamp, and all later ones, are out of the range."""
        bound = self.before
        if bound is None:
            return False
        return item.received_at > bound.timestamp or (bound.message_id is None and item.received_at == bound.timestamp)

    def is_past_lower(self, item: Message) -> bool:
        """Return whether all messages with this message's timestamp, and all earlier ones, are out of the range."""
        bound = self.after
        if bound is None:
            return False
        return item.received_at < bound.timestamp or (bound.message_id is None and item.received_at == bound.timestamp)

    def has_between(self, item: Message, start: datetime | None, end: datetime) -> bool:
        """Return whether a message is later than `start` and the lower bound, and not later than `end`."""
        is_before_start = (start is not None and item.received_at <= start) or self.is_past_lower(item)
        return item.received_at <= end and not is_before_start


def parse_bound(value: datetime | str | Message | Cursor | None, name: str) -> TimeBound | None:
    """Parse an argument `before` or `after`.

    Args:
        value: What the caller passed.
        name: The argument's name, for error messages.

    Returns:
        The bound; None for no bound.

    Raises:
        ValueError: It is not ISO 8601, has no time or no offset, or lies outside the years 1 to 9999 in UTC.
        TypeError: It is not a datetime, a string, a Message or a Cursor.
    """
    if value is None:
        return None
    if isinstance(value, Message | Cursor):
        return TimeBound(value.received_at, value.id)
    if not isinstance(value, str | datetime):
        raise TypeError(
            f"{name} must be an aware datetime, an ISO 8601 string, a Message or a Cursor, got {type(value).__name__}"
        )
    try:
        timestamp = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} must be ISO 8601, got {value!r}") from None
    if timestamp.utcoffset() is None:
        raise ValueError(f"{name} must have a time and an offset from UTC, got {value!r}")
    try:
        return TimeBound(timestamp.astimezone(UTC))
    except OverflowError:
        raise ValueError(f"{name} must be within the years 1 to 9999 in UTC, got {value!r}") from None


def clamped_add(timestamp: datetime, delta: timedelta) -> datetime:
    """Add to a timestamp; where the sum exceeds the calendar, return the calendar's first or last timestamp."""
    try:
        return timestamp + delta
    except OverflowError:
        return (datetime.max if delta > timedelta(0) else datetime.min).replace(tzinfo=UTC)


def round_up_to_second(timestamp: datetime) -> datetime:
    """Return the first whole second that is not earlier than a timestamp."""
    if timestamp.microsecond == 0:
        return timestamp
    return clamped_add(timestamp.replace(microsecond=0), SECOND)


def sort_key(item: Message) -> tuple[datetime, str]:
    """Return the key of the order that all message paginators promise."""
    return item.received_at, item.id


def is_after(item: Message, bound: TimeBound) -> bool:
    """Return whether a message lies strictly after a bound."""
    if bound.message_id is None:
        return item.received_at > bound.timestamp
    return sort_key(item) > (bound.timestamp, bound.message_id)
