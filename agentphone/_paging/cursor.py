"""Page through one conversation's messages by time, however the API reads its cursors (see `pages`)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from agentphone._paging.ascending import AscendingReader
from agentphone._paging.base import Paginator
from agentphone._paging.bounds import (
    BEFORE_ALL_MESSAGES,
    MICROSECOND,
    TimeBound,
    TimeRange,
    clamped_add,
    round_up_to_second,
)
from agentphone._paging.pages import CursorSteps, MessagePage, MessageReader
from agentphone._paging.requests import MAX_MESSAGES, CursorRequest
from agentphone._paging.same_timestamp import read_same_timestamp
from agentphone.models import Message


class CursorPaginator(Paginator[CursorRequest, Message]):
    """Read messages in the order of `(received_at, id)`, each once.

    The problem: messages arrive with equal timestamps, and a page may end between two of them. The usual cursor, the
    timestamp of the last message, then skips or repeats messages. `pages` lists what else servers do differently.

    The idea: the messages with one printed timestamp are a group, and a group is released only when it is complete.
    The last group of a page is read again with the next page, which must show something beyond it. If a group fills a
    page, larger pages are requested; if it fills the largest page, `same_timestamp` reads it.

    Requests have `before` or `after`, but not both, except to look between two neighboring cursors. `before` always
    returns the newest messages before it. `after` may return the oldest messages after it, or the newest of all;
    `_ascending` detects which.

    Assumptions: the server compares timestamps consistently, and truncates rather than rounds. If pages contradict
    that, the paginator treats them as the last page: all that was read is released, and a PaginationError follows.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        before: TimeBound | None,
        after: TimeBound | None,
        oldest_first: bool,
        page_size: int,
    ) -> None:
        self._remaining = limit
        self._wanted = TimeRange(before, after)
        self._oldest_first = oldest_first
        self._page_size = page_size
        self._reader = MessageReader()
        self._by_before = AscendingReader(
            self._reader, self._wanted, self._emit, page_size, has_limit=limit is not None
        )
        for bound in (before, after):
            if bound is not None and bound.message_id is not None:
                self._reader.update_resolution(bound.timestamp)  # it was printed by the API
        super().__init__()

    def _paginate(self) -> CursorSteps[None]:
        yield from (self._ascending() if self._oldest_first else self._descending())
        if self._reader.contradiction is not None and self._remaining != 0:
            raise self._reader.contradiction

    # Newest first

    def _descending(self) -> CursorSteps[None]:
        """Read by `before`, from the newest message to the oldest."""
        group_at: datetime | None = None  # later messages have been released; the group with this timestamp has not
        group: list[Message] = []
        limit = self._page_limit()
        page = yield from self._reader.read(limit, before=self._upper_cursor())
        while True:
            items = [item for item in page.items if group_at is None or item.received_at <= group_at]
            if not page.has_more or (items and self._wanted.is_past_lower(items[0])):
                self._emit(reversed(items))
                return
            if group_at is None or (items and items[0].received_at < group_at):
                group_at = items[0].received_at
                if self._emit(item for item in reversed(items) if item.received_at > group_at):
                    return
                group = page.at(group_at)
                limit = self._page_limit(read_again=len(group))
            elif limit < MAX_MESSAGES:
                limit = min(MAX_MESSAGES, 2 * limit)  # the group fills the page
            else:
                whole = yield from read_same_timestamp(self._reader, self._wanted, group)
                if whole.error is not None:
                    raise whole.error
                if self._emit(reversed(whole.items)):
                    return
                older = [item for item in whole.next_page.items if item.received_at < group_at]
                page = MessagePage(older, whole.next_page.has_more)
                group_at = None
                continue
            page = yield from self._reader.read_from_group(group, limit)

    # Oldest first

    def _ascending(self) -> CursorSteps[None]:
        """Detect what `after` alone returns. Read by it if that is the oldest messages, otherwise by `before`."""
        bound = self._wanted.after
        if bound is None:
            after = BEFORE_ALL_MESSAGES
        elif bound.message_id is None:
            after = bound.timestamp
        else:
            after = clamped_add(bound.timestamp, -MICROSECOND)
        page = yield from self._read_two_timestamps(after)
        if not page.has_more:
            self._emit(page.items)
        elif (yield from self._is_oldest(page, None)):
            yield from self._ascending_by_after(page)
        else:
            yield from self._by_before.read(None, self._upper_cursor())

    def _read_two_timestamps(self, after: datetime) -> CursorSteps[MessagePage]:
        """Read a page by `after` that is large enough to show more than one timestamp, if a page can be."""
        limit = self._page_limit()
        while True:
            page = yield from self._reader.read(limit, after=after)
            if not page.has_more or page.oldest < page.newest or limit == MAX_MESSAGES:
                return page
            limit = min(MAX_MESSAGES, 2 * limit)

    def _is_oldest(self, page: MessagePage, done: datetime | None) -> CursorSteps[bool]:
        """Return whether no message lies between `done` and a page that was read by `after`.

        The page before it, read by `before`, shows that. False if that cannot be decided.
        """
        if page.oldest == page.newest:
            return False  # one timestamp, and perhaps not all of its messages
        ids, group = page.ids(), page.at(page.oldest)
        limit = self._page_limit(read_again=len(group))
        while True:
            probe = yield from self._reader.read_from_group(group, limit)
            if any(item.id not in ids and self._wanted.has_between(item, done, page.oldest) for item in probe.items):
                return False
            if not probe.has_more or probe.oldest < page.oldest:
                return True
            if limit == MAX_MESSAGES:
                return False
            limit = min(MAX_MESSAGES, 2 * limit)

    def _ascending_by_after(self, page: MessagePage) -> CursorSteps[None]:
        """Read by `after`, from the oldest page on, where `after` returns the oldest messages."""
        limit = 0
        while True:
            group_at = page.newest
            if not page.has_more or self._wanted.is_past_upper(page.items[-1]):
                self._emit(page.items)
                return
            if self._emit(item for item in page.items if item.received_at < group_at):
                return
            group = page.at(group_at)
            limit = max(limit, self._page_limit(read_again=len(group)))
            before_group = clamped_add(group_at, -MICROSECOND)
            following = yield from self._reader.read(limit, after=before_group)
            if {item.id for item in group} <= following.ids():
                page = MessagePage(
                    [item for item in following.items if item.received_at >= group_at], following.has_more
                )
                if page.newest > group_at or not page.has_more:
                    limit = 0
                    continue
            elif limit == MAX_MESSAGES:
                # This page does not continue from the group. Either messages arrived so fast that the first page was
                # the newest after all; or the API includes the timestamp before, or truncates the cursor, and
                # messages that were released already fill a page.
                yield from self._by_before.read(before_group, self._upper_cursor())
                return
            else:
                page = MessagePage(group, has_more=True)
            if limit < MAX_MESSAGES:
                limit = min(MAX_MESSAGES, 2 * limit)
                continue
            # The group does not fit the largest page: read to the end of its second by `before`.
            end = round_up_to_second(self._reader.group_end(group_at))
            done = (yield from self._by_before.read(before_group, end)) or group_at
            if self._remaining == 0:
                return
            page = yield from self._read_two_timestamps(done)
            page = MessagePage([item for item in page.items if item.received_at > done], page.has_more)
            if not page.items and not page.has_more:
                return
            # An empty page with has_more: the API includes the boundary, and its messages fill the page.
            if page.has_more and not (page.items and (yield from self._is_oldest(page, done))):
                yield from self._by_before.read(done, self._upper_cursor())
                return
            limit = 0

    def _upper_cursor(self) -> datetime | None:
        """Return the `before` that returns everything up to the upper bound; None for everything up to now.

        It is a whole second, so that an API that truncates cursors reads it alike.
        """
        bound = self._wanted.before
        if bound is None:
            return None
        is_exact = bound.message_id is None
        return round_up_to_second(bound.timestamp if is_exact else self._reader.group_end(bound.timestamp))

    def _page_limit(self, read_again: int = 0) -> int:
        """Return how many messages to request: those wanted, and those that will be read again."""
        wanted = self._page_size if self._remaining is None else min(self._page_size, self._remaining)
        return min(MAX_MESSAGES, wanted + read_again)

    def _emit(self, items: Iterable[Message]) -> bool:
        """Release the messages that lie between the bounds, and return whether the limit is reached."""
        for item in items:
            if self._remaining == 0:
                return True
            if self._wanted.contains(item):
                self._ready.append(item)
                if self._remaining is not None:
                    self._remaining -= 1
        return self._remaining == 0
