"""What the vendor's pages leave open, as one value, and the instants that it governs.

Inside the sandbox an instant is an integer: microseconds since 1970 in UTC, compared whole. Only here is it read from
text or printed, and printing cuts digits, it never rounds. Nothing here knows of HTTP or of SQL.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

import attrs

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMESPECS = {0: "seconds", 3: "milliseconds", 6: "microseconds"}  # Of isoformat, which cuts.


@attrs.frozen(kw_only=True)
class Behavior:
    """Choose how the sandbox behaves where the vendor's documentation is silent.

    Args:
        boundary: Whether `before` and `after` give the messages at exactly that instant as well.
        after_alone: Which messages `after` without `before` gives when there are more than `limit`: the oldest ones
            after that instant, or the newest ones of all. With `before` it is always the newest ones before it.
        listed: Whether the messages of one page, and those inside a conversation, come newest or oldest first.
        digits: Fractional digits of every printed instant; the rest is cut. Comparison uses six whatever is printed.
    """

    boundary: Literal["exclusive", "inclusive"] = attrs.field(
        default="exclusive", validator=attrs.validators.in_(("exclusive", "inclusive"))
    )
    after_alone: Literal["oldest", "newest"] = attrs.field(
        default="oldest", validator=attrs.validators.in_(("oldest", "newest"))
    )
    message_order: Literal["newest", "oldest"] = attrs.field(
        default="newest", validator=attrs.validators.in_(("newest", "oldest"))
    )
    timestamp_digits: Literal[0, 3, 6] = attrs.field(default=6, validator=attrs.validators.in_((0, 3, 6)))

    def print(self, instant: int) -> str:
        """Print an instant as ISO 8601 in UTC with a `Z`, cut to this reading's digits."""
        moment = EPOCH.replace(tzinfo=None) + timedelta(microseconds=instant)
        return moment.isoformat(timespec=TIMESPECS[self.timestamp_digits]) + "Z"


def parse_timestamp(moment: datetime | str) -> int:
    """Turn a moment into microseconds since 1970 in UTC.

    Args:
        moment: An aware datetime, or the same as ISO 8601 text with an offset or `Z`.

    Raises:
        ValueError: The text is not ISO 8601, or the moment has no offset, or UTC has no such year.
    """
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if parsed.utcoffset() is None:
        raise ValueError(f"an instant needs an offset or Z: {moment!s}")
    try:
        return (parsed.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)
    except OverflowError as error:
        raise ValueError(f"out of the calendar's range: {moment!s}") from error
