"""What a test may change about the sandbox: its `Behavior` and its clock. Also how timestamps are parsed and printed.

Inside the sandbox a timestamp is an integer, microseconds since 1970 in UTC, compared at full precision. Only this
module parses and formats them, and formatting truncates, it never rounds. Nothing here knows HTTP or SQL.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import attrs

from agentphone._checks import check_seconds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAIVE_EPOCH = EPOCH.replace(tzinfo=None)
MAX_DELAY = 1e9  # seconds; far beyond any test, and still a time that can be stored
TIMESPECS = {0: "seconds", 3: "milliseconds", 6: "microseconds"}  # of datetime.isoformat, which truncates


def _check_delay(_: object, attribute: "attrs.Attribute[float]", value: object) -> None:
    check_seconds(attribute.name, value, allow_zero=True, maximum=MAX_DELAY)


@attrs.frozen(kw_only=True)
class Behavior:
    """Choose how the sandbox behaves where the vendor's documentation is silent.

    Args:
        boundary: Whether `before` and `after` include messages with exactly that timestamp.
        after_alone: Which messages `after` without `before` returns when there are more than `limit`: the oldest ones
            after that timestamp, or the newest ones of all. With `before` it is always the newest ones before it.
        message_order: Whether the messages of one page, and those inside a conversation, come newest or oldest first.
        timestamp_digits: Fractional digits of every timestamp shown; the rest is truncated. Comparisons use six digits
            regardless.
        sent_message_delay: How many seconds of real time a message that was sent through the API is missing from the
            history. The conversation itself shows it at once: in its count, preview and `lastMessageAt`.
        webhook_retries: Which failed deliveries are attempted again: after a 5xx and without a response, as the
            vendor's newest text says, or `"any"`, also after 3xx and 4xx.
        echo_outbound: Whether outbound messages are delivered to the webhook too.

    Raises:
        ValueError: An argument has another value.
        TypeError: `sent_message_delay` or `echo_outbound` has another type.
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
    sent_message_delay: float = attrs.field(default=0.0, validator=_check_delay)
    webhook_retries: Literal["5xx", "any"] = attrs.field(default="5xx", validator=attrs.validators.in_(("5xx", "any")))
    echo_outbound: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))


@attrs.define(eq=False)
class Settings:
    """The settings that may change while the sandbox runs; all of its parts share one object.

    Args:
        behavior: How timestamps are shown and pages are cut.
        clock: Returns the current time in seconds since 1970.
    """

    behavior: Behavior = attrs.field(factory=Behavior)
    clock: Callable[[], float] = time.time

    def now(self) -> int:
        """Return the clock's time in microseconds since 1970."""
        return round(self.clock() * 1_000_000)

    def format(self, timestamp: int) -> str:
        """Return a timestamp as ISO 8601 in UTC with `Z`, truncated to `behavior.timestamp_digits`."""
        moment = NAIVE_EPOCH + timedelta(microseconds=timestamp)
        return moment.isoformat(timespec=TIMESPECS[self.behavior.timestamp_digits]) + "Z"


def parse_timestamp(value: datetime | str) -> int:
    """Return a timestamp in microseconds since 1970 in UTC.

    Args:
        value: An aware datetime, or ISO 8601 text with an offset or `Z`.

    Raises:
        ValueError: The text is not ISO 8601, there is no offset, or the year does not exist in UTC.
    """
    parsed = datetime.fromisoformat(value) if isinstance(value, str) else value
    if parsed.utcoffset() is None:
        raise ValueError(f"a timestamp needs an offset or Z, got {value!s}")
    try:
        return (parsed.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)
    except OverflowError as error:
        raise ValueError(f"timestamp out of range: {value!s}") from error
