"""Whether to try again, and after how long. Pure: time and randomness come in as arguments, nothing sleeps here.

Every call of this SDK may be repeated: a GET reads, and the one PATCH replaces the metadata whole, so that sending it
twice leaves what sending it once leaves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz

from attrs import frozen

from agentphone.errors import AgentPhoneError, APIConnectionError, APIStatusError, DeadlineExceededError

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
INITIAL_BACKOFF = 0.5
MAX_BACKOFF = 8.0


@frozen
class RetryPolicy:
    """How often a call is tried again, and how long it pauses before."""

    max_retries: int
    """Attempts after the first."""
    max_retry_after: float
    """The longest `Retry-After` that is waited for, in seconds; a longer one ends the call."""
    rand: Callable[[], float] = random.random
    """Gives numbers from 0 to 1."""

    def delay(self, error: AgentPhoneError, attempt: int) -> float | None:
        """Say how many seconds to wait before the next attempt.

        Args:
            error: How the latest attempt failed.
            attempt: Which attempt that was, from 1.

        Returns:
            Seconds, or None when the call ends with this error.
        """
        if attempt > self.max_retries or not is_retryable(error):
            return None
        if isinstance(error, APIStatusError) and error.retry_after is not None:
            if error.retry_after > self.max_retry_after:
                return None
            return error.retry_after + self.rand() * INITIAL_BACKOFF  # later than asked, never earlier
        return self.rand() * min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** min(attempt - 1, 16))


class RetryBudget:
    """Keeps retries a small share of the calls, so that an API that fails is not hit harder for failing.

    A retry takes one from it; a call that succeeds puts `share` back, and so does time, slowly. While it is empty,
    calls fail with their first error.
    """

    def __init__(self, *, size: float = 100.0, share: float = 0.5, per_second: float = 1.0) -> None:
        self._size = size
        self._share = share
        self._per_second = per_second
        self._left = size
        self._filled_at = -math.inf

    def record_success(self) -> None:
        """Note that a call succeeded."""
        self._left = min(self._size, self._left + self._share)

    def try_acquire(self, now: float) -> bool:
        """Take one retry, if there is one.

        Args:
            now: Seconds of a clock that only goes forward.
        """
        if now > self._filled_at:
            if self._filled_at > -math.inf:
                self._left = min(self._size, self._left + (now - self._filled_at) * self._per_second)
            self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def is_retryable(error: AgentPhoneError) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, APIStatusError):
        return error.status_code in RETRIED_STATUSES
    if isinstance(error, DeadlineExceededError):
        return False
    return isinstance(error, APIConnectionError) and not error.is_permanent


def parse_retry_after(value: str | None, now: float, date: str | None = None) -> float | None:
    """Read a `Retry-After` header.

    Args:
        value: The header, or None: a number of seconds or an HTTP date.
        now: Unix seconds, for a date.
        date: The `Date` header: what the server's own clock said. It goes before `now`, or a clock here that is ahead
            would make the retry early.

    Returns:
        Seconds from now, 0.0 for a date in the past, `inf` for one beyond all calendars; None for what cannot be read.
    """
    if value is None or "_" in value:  # Python reads 1_000 as a number; HTTP does not
        return None
    try:
        seconds = float(value)
    except ValueError:
        when, there = parse_date(value), parse_date(date or "")
        if when is None:
            return None
        return max(0.0, when - (now if there is None or math.isinf(there) else there))
    return seconds if seconds >= 0 else None  # nan is not >= 0 either


def parse_date(value: str) -> float | None:
    """Read an HTTP date as Unix seconds; `inf` beyond all calendars, None for what is no date."""
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
