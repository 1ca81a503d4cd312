"""Follow one conversation: its messages as they arrive, each once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta

from agentphone._paging.base import MAX_EMPTY_PAGES, Paginator
from agentphone._paging.bounds import MICROSECOND, TimeBound, clamped_add, key
from agentphone._paging.cursor import MAX_MESSAGES, CursorPaginator, CursorRequest
from agentphone._paging.polling import (
    LOOKBACK,
    PAGE_HEADROOM,
    TIMESTAMP_RESOLUTION,
    IdleTimer,
    SeenMessages,
    page_capacity,
)
from agentphone._paging.watch import breaks_off, floor_below, lasting_of, not_beyond
from agentphone.models import Message, Page


class FollowPaginator(Paginator[CursorRequest, Message]):
    """Read one conversation's messages as they arrive, oldest first, each once.

    A poll reads the newest messages down to a floor: the instant of one of the newest of the poll before, less the
    `overlap`. A message that is shown late, but not later than that after its own instant, lies above the floor of the
    next poll, however long that takes to come. What has been seen above the floor is remembered by id.

    Not the newest one itself, and nothing later than the server's own time: what is dated in the future would hide
    those that come behind it.
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
        self._quiet = IdleTimer(self._overlap, clock)
        self._asked_at: datetime | None = None
        """The server's time at the first answer of a poll: what it shows later may be missing there."""
        self._page_capacity = LOOKBACK
        """How many messages one request of a poll can read again and see beyond."""
        self.has_new = False
        """Whether the last poll brought anything."""
        super().__init__()

    def _run(self) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], None]:
        for _ in range(MAX_EMPTY_PAGES):
            pages = yield (CursorRequest(limit=LOOKBACK + PAGE_HEADROOM),)
            if pages[0].data or not pages[0].has_more:
                break
        self._asked_at = self._server_time()
        newest = sorted(pages[0].data, key=key)
        start, lasting = self._after, lasting_of(self._after)
        broken_off_since: float | None = None
        if newest:
            window = SeenMessages(
                self._low_watermark([item.received_at for item in newest], has_more=pages[0].has_more)
            )
            window.start = start
            if start is None:
                window.take(newest)  # they were there before
                window.start = TimeBound(newest[0].received_at)
            if start is not None and window.low_watermark is not None and start.instant <= window.low_watermark:
                yield from self._catch_up(start, window.low_watermark)
                pages = ()
        else:
            # Perhaps only for a moment: what is older than this is not new when it shows.
            window = SeenMessages(floor_below(self._overlap, start.instant if start else None, self._asked_at), start)
        while True:
            began = self._clock()
            found, is_whole = yield from self._read(window.paginator(), pages)
            pages = ()
            if is_whole:
                broken_off_since = None
            elif broken_off_since is None:
                broken_off_since = self._clock()
            fresh = window.take(found)
            self._ready.extend(fresh)
            self.has_new = bool(fresh)
            # What shows nothing tells nothing.
            if found and (broken_off_since is None or began - broken_off_since > self._overlap.total_seconds()):
                window.start = lasting  # what else is shown behind it now, is shown late
                is_quiet = self._quiet.note(has_new=self.has_new)
                instants = sorted(window.seen.values())
                low_watermark = self._low_watermark(instants, has_more=False)
                if is_quiet and len(instants) > self._page_capacity:
                    # Or each poll would read all of a burst again, for ever.
                    low_watermark = not_beyond(instants[-self._page_capacity - 1], self._asked_at, self._overlap)
                if low_watermark is not None:
                    window.raise_watermark(low_watermark)
            yield ()

    def _catch_up(
        self, start: TimeBound, end: datetime
    ) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], None]:
        """Give what was received between the start and the first poll's floor, in flat memory."""
        paginator = CursorPaginator(
            limit=None,
            before=TimeBound(clamped_add(end, MICROSECOND)),
            after=start,
            oldest_first=True,
            page_size=MAX_MESSAGES,
        )
        while requests := paginator.next_requests():
            items = paginator.receive((yield requests))
            self._ready.extend(items)  # not before the yield: each step has a list of its own

    def _read(
        self, paginator: CursorPaginator, pages: Sequence[Page[Message]]
    ) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], tuple[list[Message], bool]]:
        """Read to the end of a walk, whose first pages may be there already; oldest first, and whether it is all."""
        found: list[Message] = []
        first: Page[Message] | None = None
        last: Page[Message] | None = None
        is_whole = True
        self._page_capacity = LOOKBACK
        while requests := paginator.next_requests():
            if not pages:
                pages = yield requests
                if first is None:
                    self._asked_at = self._server_time()
            if first is None:
                first = pages[0]
            else:
                self._page_capacity = page_capacity(len(first.data))
            is_whole = is_whole and not breaks_off(last, pages[0])
            last = pages[0]
            found.extend(paginator.receive(pages))
            pages = ()
        return found[::-1], is_whole

    def _low_watermark(self, instants: Sequence[datetime], *, has_more: bool) -> datetime | None:
        """Say down to where the next poll is to read, from the instants of the newest messages, oldest first."""
        if not instants or (len(instants) <= LOOKBACK and not has_more):
            return None
        return floor_below(self._overlap, instants[max(0, len(instants) - LOOKBACK - 1)], self._asked_at)
