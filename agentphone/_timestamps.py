"""ISO 8601 text to aware `datetime` objects in UTC, and back: the one place for both outside the sandbox."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_timestamp(text: str) -> datetime:
    """Parse an ISO 8601 date and time; one without an offset is in UTC.

    Raises:
        ValueError: The text is not a date with a time, or lies outside the years 1 to 9999 in UTC.
    """
    timestamp = datetime.fromisoformat(text)
    if ":" not in text and "T" not in text:
        raise ValueError(f"a date without a time: {text!r}")
    if timestamp.tzinfo is UTC:
        return timestamp
    try:
        return timestamp.replace(tzinfo=UTC) if timestamp.tzinfo is None else timestamp.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"outside the years 1 to 9999 in UTC: {text!r}") from None


def format_timestamp(timestamp: datetime, timespec: str = "auto") -> str:
    """Return an aware `datetime` as ISO 8601 text in UTC with `Z`: what the API takes, and what the SDK writes.

    Args:
        timestamp: The `datetime`.
        timespec: How many digits to write, as for `datetime.isoformat`. `"auto"`: six, or none for a whole second.

    Returns:
        The text.

    Raises:
        OverflowError: It lies outside the years 1 to 9999 in UTC.
    """
    return timestamp.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"
