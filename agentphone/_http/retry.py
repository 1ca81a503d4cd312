"""Retry policy: whether to retry, and after what delay (backoff or `Retry-After`).

Pure: time and randomness are arguments, nothing sleeps here.

GET only reads, and the one PATCH replaces the metadata, which is idempotent: both may be repeated. A message or a
reaction may not: the API has no idempotency key, so a repeated one would arrive, and be billed, twice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz
from enum import Enum

from attrs import frozen

from agentphone.errors import AgentPhoneError, APIConnectionError, APIStatusError, DeadlineExceededError


class Repeat(Enum):
    """When a request may be sent again after a failure."""

    ALWAYS = "always"
    """It is idempotent."""
    IF_NOT_ACCEPTED = "if not accepted"
    """Only if the API certainly has not carried it out. If that is unclear, the call ends as unconfirmed."""
    NEVER = "never"
    """It is not worth a retry."""


DELIVERY_UNCONFIRMED = "DELIVERY_UNCONFIRMED"
"""The API's code for a message that may be on its way."""

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
INITIAL_BACKOFF = 0.5
"""Upper bound of the first delay, in seconds; it doubles with each retry."""
MAX_BACKOFF = 8.0
"""Upper bound of every delay that the server did not ask for, in seconds."""


@frozen
class RetryPolicy:
    """How often a request is retried, and after what delays."""

    max_retries: int
    """Attempts after the first."""
    max_retry_after: float
    """The longest `Retry-After` to wait for, in seconds; a longer one ends the call."""
    rand: Callable[[], float] = random.random
    """Returns random numbers from 0 to 1."""

    def delay(self, error: AgentPhoneError, attempt: int, repeat: Repeat = Repeat.ALWAYS) -> float | None:
        """Return the delay before the next attempt.

        Args:
            error: The failure of the latest attempt.
            attempt: The number of that attempt, from 1.
            repeat: When the request may be sent again.

        Returns:
            Seconds, or None if the call ends with this error.
        """
        if attempt > self.max_retries or not is_retryable(error):
            return None
        if repeat is Repeat.NEVER or (repeat is Repeat.IF_NOT_ACCEPTED and is_unconfirmed(error)):
            return None
        if isinstance(error, APIStatusError) and error.retry_after is not None:
            if error.retry_after > self.max_retry_after:
                return None
            return error.retry_after + self.rand() * INITIAL_BACKOFF  # later than asked, never earlier
        return self.rand() * min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** min(attempt - 1, 16))


class RetryBudget:
    """Limits retries to a small share of the calls, so that they do not add to the load of a failing API.

    A retry spends one unit. A successful call adds `per_success`, and time adds `per_second`. While the budget is
    empty, calls fail with their first error.
    """

    def __init__(self, *, size: float = 100.0, per_success: float = 0.5, per_second: float = 1.0) -> None:
        self._size = size
        self._per_success = per_success
        self._per_second = per_second
        self._left = size
        self._updated_at = -math.inf

    def record_success(self) -> None:
        """Add the share of a successful call."""
        self._left = min(self._size, self._left + self._per_success)

    def try_acquire(self, now: float) -> bool:
        """Spend one retry; return False if the budget is empty.

        Args:
            now: Seconds of a monotonic clock.
        """
        if now > self._updated_at:
            self._left = min(self._size, self._left + (now - self._updated_at) * self._per_second)
            self._updated_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def is_retryable(error: AgentPhoneError) -> bool:
    """Return whether the same request may succeed a little later."""
    if isinstance(error, APIStatusError):
        return error.status_code in RETRIED_STATUSES
    if isinstance(error, DeadlineExceededError):
        return False
    return isinstance(error, APIConnectionError) and not error.is_permanent


def is_unconfirmed(error: AgentPhoneError) -> bool:
    """Return whether a request that failed like this may have been carried out nevertheless.

    It certainly has not been if nothing of it was sent, or if the API rejected it: 3xx and 4xx, except 408 (which
    proxies return for a slow API, too) and those with the code `DELIVERY_UNCONFIRMED` (documented for 409).
    """
    if isinstance(error, APIConnectionError):
        return not error.is_unsent
    return not is_rejected(error)  # also a success whose body cannot be read


def is_rejected(error: AgentPhoneError) -> bool:
    """Return whether the API certainly has not carried out a request, and says so."""
    if not isinstance(error, APIStatusError) or error.status_code == 408 or not 300 <= error.status_code < 500:
        return False
    # Wherever the body has the code: errors come in several forms.
    return error.code != DELIVERY_UNCONFIRMED and DELIVERY_UNCONFIRMED.encode() not in error.body


def parse_retry_after(value: str | None, now: float, date: str | None = None) -> float | None:
    """Parse a `Retry-After` header.

    Args:
        value: The header, a number of seconds or an HTTP date; or None.
        now: Unix seconds, used for a date.
        date: The `Date` header: the time by the server's own clock. It is preferred to `now`, because a local clock
            that is ahead would make the retry early.

    Returns:
        Seconds from now, 0.0 for a date in the past, `inf` for a date after the year 9999; None if it is not valid.
    """
    if value is None or "_" in value:  # Python accepts 1_000 as a number, HTTP does not
        return None
    try:
        seconds = float(value)
    except ValueError:
        retry_at, server_now = parse_http_date(value), parse_http_date(date or "")
        if retry_at is None:
            return None
        return max(0.0, retry_at - (now if server_now is None or math.isinf(server_now) else server_now))
    return seconds if seconds >= 0 else None  # excludes nan, too


def parse_http_date(value: str) -> float | None:
    """Parse an HTTP date to Unix seconds; return `inf` for one after the year 9999, None if it is not valid."""
    date = parsedate_tz(value)
    if date is None:
        return None
    try:
        return mktime_tz(date)
    except (ValueError, OverflowError):
        return math.inf if date[0] > 9999 else None


MAX_POLL_RETRY_AFTER = 3600.0
"""The longest `Retry-After`, in seconds, that a live iteration waits for."""


def min_poll_delay(error: APIConnectionError | APIStatusError) -> float | None:
    """Return how many seconds a live iteration must wait at least after its poll has failed.

    A live iteration retries without a limit, also after a deadline, which is one of each request.

    Args:
        error: Why the poll failed, after the retries of its own.

    Returns:
        The `Retry-After`, 0.0 without one; None if the error will not clear by itself, or not within an hour.
    """
    if not is_retryable(error) and not isinstance(error, DeadlineExceededError):
        return None
    retry_after = (error.retry_after if isinstance(error, APIStatusError) else None) or 0.0
    return retry_after if retry_after <= MAX_POLL_RETRY_AFTER else None
