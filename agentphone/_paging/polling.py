"""What `follow` and `watch` share: how long to wait between polls, how far to look back, which messages were seen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from attrs import define, field

from agentphone._paging.base import BasePaginator, P, R, T
from agentphone._paging.bounds import SECOND, TimeBound, clamped_add, is_after
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.requests import MAX_MESSAGES
from agentphone.models import Message, Page

LOOKBACK = 20
"""How many of the newest items each poll reads again, whatever their age.

Without it, one message dated in the future would hide all later ones: they would look older than what was read.
"""
PAGE_HEADROOM = 20
"""How many new items fit into the first page of a poll, besides those that it reads again."""
MAX_CONCURRENT_READS = 20
"""How many conversations are read at once: the default number of a client's connections."""
TIMESTAMP_RESOLUTION = SECOND
"""Timestamps may be truncated by up to this much, and differently in the list than in the messages."""
BACKOFF_FACTOR = 1.5
"""Each delay without a new message is this many times the one before."""
JITTER = 0.2
"""The largest part of a delay that is left out at random, so that many clients do not poll at the same time."""


class LivePaginator(BasePaginator[R, P, T]):
    """A paginator without an end: it polls until it is closed.

    No requests means the end of a poll. Calling `receive(())` then starts the next poll.

    Args:
        after: Where to start; None for the time of the first response.
        overlap: How late the API may show a message.
        clock: Returns seconds on a monotonic clock.
        server_time: Returns the server's time at its latest response; None if it sends no `Date`.
    """

    def __init__(
        self,
        *,
        after: TimeBound | None,
        overlap: timedelta,
        clock: Callable[[], float],
        server_time: Callable[[], datetime | None],
    ) -> None:
        self._after = after
        self._overlap = overlap + TIMESTAMP_RESOLUTION
        self._clock = clock
        self._server_time = server_time
        self._idle_timer = IdleTimer(self._overlap, clock)
        self._polled_at: datetime | None = None
        """The server's time at the first response of a poll. That response may lack what is dated later."""
        self._page_capacity = LOOKBACK
        """How many items the first page of a poll can hold again and still show that nothing is missing."""
        self.has_new = False
        """True if the last poll found new messages, or there are messages that it could not read yet."""
        super().__init__()


@define
class PollBackoff:
    """How long to wait between polls: longer and longer while nothing new arrives."""

    interval: float
    """Seconds after a poll that found something new."""
    max_interval: float
    """The longest delay, in seconds."""
    rand: Callable[[], float] = random.random
    """Returns numbers from 0 to 1."""
    _next: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.interval

    def next_delay(self, *, has_new: bool) -> float:
        """Return how many seconds to wait from the start of the last poll to the start of the next.

        Args:
            has_new: Whether the last poll found something new. The delays then start again from `interval`.
        """
        if has_new:
            self._next = self.interval
        delay = self._next * (1 - JITTER * self.rand())  # only ever shorter: users rely on max_interval
        self._next = min(self.max_interval, self._next * BACKOFF_FACTOR)
        return delay


@define
class SeenMessages:
    """The newest messages of one conversation: which have been seen, and how far back to read again.

    A message counts as new if its id has not been seen. Ids are kept only down to the low watermark, so that memory
    stays bounded; messages up to there are never read again.
    """

    low_watermark: datetime | None
    """Messages up to this timestamp are not read again. None to read from the beginning."""
    start: TimeBound | None = None
    """Messages up to this bound are not new, even if they have not been seen."""
    received_at: dict[str, datetime] = field(factory=dict)
    """The timestamp of each message that has been seen, by id."""

    def paginator(self, headroom: int) -> CursorPaginator:
        """Create a paginator that reads everything after the low watermark, newest first.

        Args:
            headroom: How many new messages fit into a page, besides those seen before.
        """
        after = None if self.low_watermark is None else TimeBound(self.low_watermark)
        page_size = min(MAX_MESSAGES, len(self.received_at) + headroom)
        return CursorPaginator(limit=None, before=None, after=after, oldest_first=False, page_size=page_size)

    def add_new(self, items: Iterable[Message]) -> list[Message]:
        """Remember messages, and return those that are new, in the same order."""
        added = list(items)
        new = [item for item in added if self.is_new(item)]
        self.received_at.update((item.id, item.received_at) for item in added)
        return new

    def is_new(self, item: Message) -> bool:
        """Return whether a message is after the start and has not been seen."""
        return item.id not in self.received_at and (self.start is None or is_after(item, self.start))

    def is_lagging(self, last_message_at: datetime | None, items: Iterable[Message]) -> bool:
        """Return whether the messages do not show yet what the list shows as the conversation's last message."""
        if last_message_at is None or (self.low_watermark is not None and last_message_at <= self.low_watermark):
            return False
        return not any(item.received_at + TIMESTAMP_RESOLUTION > last_message_at for item in items)

    def raise_watermark(self, low_watermark: datetime) -> None:
        """Raise the low watermark, and forget the messages up to there. It is never lowered."""
        if self.low_watermark is None or low_watermark > self.low_watermark:
            self.low_watermark = low_watermark
            self.received_at = {key: at for key, at in self.received_at.items() if at > low_watermark}


class IdleTimer:
    """Measures how long nothing new has arrived.

    Once that is longer than the overlap, everything that was received before has been shown. The watermark may then
    rise above it.
    """

    def __init__(self, overlap: timedelta, clock: Callable[[], float]) -> None:
        self._seconds = overlap.total_seconds()
        self._clock = clock
        self._idle_since = self._last_poll = math.nan

    def record_poll(self, *, has_new: bool) -> bool:
        """Record the result of a poll, and return whether nothing new has arrived for longer than the overlap.

        The response may be stale: it only proves the state at the time of the request. That was not before the poll
        before ended, so the time up to then is what counts.
        """
        polled_at = self._last_poll
        self._last_poll = self._clock()
        if has_new or math.isnan(self._idle_since):
            self._idle_since = self._last_poll
        return polled_at - self._idle_since > self._seconds


def page_capacity(first_page_size: int) -> int:
    """Return how many items the first page of a poll may hold again, given that a first page was too small.

    One item less than the page held, so that the next first page shows something older and suffices.
    """
    return min(LOOKBACK, max(0, first_page_size - 1))


def is_truncated(previous: Page[T] | None, page: Page[T]) -> bool:
    """Return whether a page is empty although the page before it said that there is more."""
    return previous is not None and previous.has_more and not page.data


def watermark_below(overlap: timedelta, *timestamps: datetime | None) -> datetime | None:
    """Return the earliest of the known timestamps less the overlap: messages up to there have been shown before.

    None if no timestamp is known.
    """
    earliest = min((timestamp for timestamp in timestamps if timestamp is not None), default=None)
    return None if earliest is None else clamped_add(earliest, -overlap)


def capped_watermark(timestamp: datetime, server_time: datetime | None, overlap: timedelta) -> datetime:
    """Return a timestamp, but not one so late that new messages may still be dated before it."""
    return timestamp if server_time is None else min(timestamp, clamped_add(server_time, -overlap))


def lasting_bound(after: TimeBound | None) -> TimeBound | None:
    """Return the part of a start that stays valid for late messages.

    A timestamp does: the caller wants nothing before it. A message does not: it says what had been handled when the
    caller started, and a message shown late may be dated before it.
    """
    return after if after is not None and after.message_id is None else None
