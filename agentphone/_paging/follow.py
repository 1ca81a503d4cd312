"""Follow one conversation: its messages as they arrive, each once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from agentphone._paging.base import MAX_EMPTY_PAGES
from agentphone._paging.bounds import MICROSECOND, TimeBound, clamped_add, sort_key
from agentphone._paging.cursor import CursorPaginator
from agentphone._paging.pages import CursorSteps
from agentphone._paging.polling import (
    LOOKBACK,
    PAGE_HEADROOM,
    LivePaginator,
    SeenMessages,
    capped_watermark,
    is_truncated,
    lasting_bound,
    page_capacity,
    watermark_below,
)
from agentphone._paging.requests import MAX_MESSAGES, CursorRequest
from agentphone.models import Message, Page


class FollowPaginator(LivePaginator[CursorRequest, Page[Message], Message]):
    """Read one conversation's messages as they arrive, oldest first, each once.

    The problem: the API may show a message later than others with later timestamps. Reading only what is after the
    newest message would miss it.

    The idea: each poll reads the newest messages again, down to a low watermark, and compares ids. The watermark is
    the overlap before a message that the poll before showed as one of the newest. A message that is shown at most
    the overlap late is above the next poll's watermark, however long the next poll takes to come.

    The watermark does not follow the newest message itself, nor pass the server's own time. Otherwise a message dated
    in the future would hide those that arrive after it.
    """

    def _paginate(self) -> CursorSteps[None]:
        request = CursorRequest(limit=LOOKBACK + PAGE_HEADROOM)
        (page,) = yield (request,)
        for _ in range(MAX_EMPTY_PAGES - 1):
            if page.data or not page.has_more:
                break
            (page,) = yield (request,)
        pages: Sequence[Page[Message]] = (page,)
        self._polled_at = self._server_time()
        newest = sorted(page.data, key=sort_key)
        start = self._after
        truncated_since: float | None = None
        if newest:
            low_watermark = self._next_watermark([item.received_at for item in newest], has_more=page.has_more)
            seen = SeenMessages(low_watermark, start)
            if start is None:
                seen.add_new(newest)  # they are older than the iteration
                seen.start = TimeBound(newest[0].received_at)
            elif low_watermark is not None and start.timestamp <= low_watermark:
                yield from self._catch_up(start, low_watermark)
                pages = ()
        else:
            # Perhaps the conversation is empty only for a moment. Messages up to the watermark are not new then.
            seen = SeenMessages(
                watermark_below(self._overlap, start.timestamp if start else None, self._polled_at), start
            )
        while True:
            began = self._clock()
            found, is_complete = yield from self._read_newest(seen.paginator(PAGE_HEADROOM), pages)
            pages = ()
            if is_complete:
                truncated_since = None
            elif truncated_since is None:
                truncated_since = self._clock()
            new = seen.add_new(found)
            self._ready.extend(new)
            self.has_new = bool(new)
            # A truncated poll proves nothing, unless polls have been truncated for longer than the overlap.
            is_conclusive = truncated_since is None or began - truncated_since > self._overlap.total_seconds()
            if found and is_conclusive:
                seen.start = lasting_bound(self._after)  # what appears before it from now on is late, and new
                self._advance_watermark(seen)
            yield ()

    def _advance_watermark(self, seen: SeenMessages) -> None:
        """Raise the watermark after a poll."""
        is_idle = self._idle_timer.record_poll(has_new=self.has_new)
        timestamps = sorted(seen.received_at.values())
        low_watermark = self._next_watermark(timestamps, has_more=False)
        if is_idle and len(timestamps) > self._page_capacity:
            # After a burst, each poll would otherwise read the whole burst again, forever.
            low_watermark = capped_watermark(timestamps[-self._page_capacity - 1], self._polled_at, self._overlap)
        if low_watermark is not None:
            seen.raise_watermark(low_watermark)

    def _catch_up(self, start: TimeBound, end: datetime) -> CursorSteps[None]:
        """Release the messages between the start and the first poll's watermark, in constant memory."""
        paginator = CursorPaginator(
            limit=None,
            before=TimeBound(clamped_add(end, MICROSECOND)),
            after=start,
            oldest_first=True,
            page_size=MAX_MESSAGES,
        )
        while requests := paginator.next_requests():
            items = paginator.receive((yield requests))
            self._ready.extend(items)  # after the yield: each step has a list of its own

    def _read_newest(
        self, paginator: CursorPaginator, pages: Sequence[Page[Message]]
    ) -> CursorSteps[tuple[list[Message], bool]]:
        """Read one poll.

        Args:
            paginator: Reads the messages above the watermark.
            pages: The pages of its first requests, if they have been read already.

        Returns:
            The messages, oldest first, and whether they are complete: False if a page was empty although the page
            before it said hasMore.
        """
        found: list[Message] = []
        first: Page[Message] | None = None
        last: Page[Message] | None = None
        is_complete = True
        self._page_capacity = LOOKBACK
        while requests := paginator.next_requests():
            if not pages:
                pages = yield requests
                if first is None:
                    self._polled_at = self._server_time()
            if first is None:
                first = pages[0]
            else:
                self._page_capacity = page_capacity(len(first.data))
            is_complete = is_complete and not is_truncated(last, pages[0])
            last = pages[0]
            found.extend(paginator.receive(pages))
            pages = ()
        return found[::-1], is_complete

    def _next_watermark(self, timestamps: Sequence[datetime], *, has_more: bool) -> datetime | None:
        """Return the low watermark that leaves `LOOKBACK` messages above it; None if there are not more.

        Args:
            timestamps: Those of the newest messages, oldest first.
            has_more: Whether there are older messages.
        """
        if not timestamps or (len(timestamps) <= LOOKBACK and not has_more):
            return None
        return watermark_below(self._overlap, timestamps[max(0, len(timestamps) - LOOKBACK - 1)], self._polled_at)
