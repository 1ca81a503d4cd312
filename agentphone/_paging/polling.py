"""What both live paginators share: when to poll, how far to look back, and which messages were seen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from attrs import define, field

from agentphone._paging.bounds import TimeBound, key
from agentphone._paging.cursor import MAX_MESSAGES, CursorPaginator
from agentphone.models import Message

LOOKBACK = 20
"""How many of the newest messages are looked at again whatever their age: one whose date lies in the future must not
hide those that come behind it."""


PAGE_HEADROOM = 20
"""How many new items one request has room for beside those that it reads again."""


MAX_CONCURRENT_READS = 20
"""How many conversations are read at once: as many as a client has connections by default."""


TIMESTAMP_RESOLUTION = timedelta(seconds=1)
"""How much the printing of an instant may cut off it, and the list otherwise than the messages."""


GROWTH = 1.5


JITTER = 0.2


@define
class PollBackoff:
    """How long to rest between two polls: longer and longer while nothing happens."""

    interval: float
    """Seconds after a poll that brought something."""
    longest: float
    """Seconds that no rest exceeds."""
    rand: Callable[[], float] = random.random
    """Gives numbers from 0 to 1."""
    _next: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.interval

    def next_delay(self, *, has_new: bool) -> float:
        """Say how many seconds may pass from the beginning of the last poll to that of the next."""
        if has_new:
            self._next = self.interval
        seconds = self._next * (1 - JITTER * self.rand())  # never more than was said, and not all clients at once
        self._next = min(self.longest, self._next * GROWTH)
        return seconds


@define
class SeenMessages:
    """The end of one conversation, which is read again and again: every message later than `floor` that was seen."""

    low_watermark: datetime | None
    """None for the beginning of time."""
    start: TimeBound | None = None
    """Nothing up to here is new, though it was not seen before."""
    seen: dict[str, datetime] = field(factory=dict)
    """When each was received, by id."""

    def paginator(self, room: int = PAGE_HEADROOM) -> CursorPaginator:
        """Make the walk that reads it, from the newest message down, with room for so many new ones in a page."""
        bound = None if self.low_watermark is None else TimeBound(self.low_watermark)
        size = min(MAX_MESSAGES, len(self.seen) + room)
        return CursorPaginator(limit=None, before=None, after=bound, oldest_first=False, page_size=size)

    def take(self, items: Iterable[Message]) -> list[Message]:
        """Remember messages, and give those that are new, in their order."""
        given = list(items)
        fresh = [item for item in given if self.is_new(item)]
        self.seen.update((item.id, item.received_at) for item in given)
        return fresh

    def is_new(self, item: Message) -> bool:
        """Whether a message was neither seen before, nor there before the start."""
        return item.id not in self.seen and (self.start is None or is_after(item, self.start))

    def is_lagging(self, last: datetime | None, items: Iterable[Message]) -> bool:
        """Whether the messages do not show yet what the list says was received last."""
        if last is None or (self.low_watermark is not None and last <= self.low_watermark):
            return False
        return not any(item.received_at + TIMESTAMP_RESOLUTION > last for item in items)

    def raise_watermark(self, low_watermark: datetime) -> None:
        """Forget what was received up to an instant."""
        if self.low_watermark is None or low_watermark > self.low_watermark:
            self.low_watermark = low_watermark
            self.seen = {identity: at for identity, at in self.seen.items() if at > low_watermark}


class IdleTimer:
    """Knows how long nothing has come: what is longer ago than `overlap` cannot be shown late any more."""

    def __init__(self, overlap: timedelta, clock: Callable[[], float]) -> None:
        self._seconds = overlap.total_seconds()
        self._clock = clock
        self._since = self._noted = math.nan

    def note(self, *, has_new: bool) -> bool:
        """Take the outcome of a poll, and say whether it has been quiet for long enough."""
        asked = self._noted  # the answer may have been long on its way: it tells of no later time than this for sure
        self._noted = self._clock()
        if has_new or math.isnan(self._since):
            self._since = self._noted
        return asked - self._since > self._seconds


def page_capacity(first_page: int) -> int:
    """Say how much of a first page that did not suffice may be read again, so that the next one will."""
    return min(LOOKBACK, max(0, first_page - 1))


def is_after(item: Message, start: TimeBound) -> bool:
    """Whether a message lies strictly behind a bound, in the order of `(received_at, id)`."""
    if start.message_id is None:
        return item.received_at > start.instant
    return key(item) > (start.instant, start.message_id)
