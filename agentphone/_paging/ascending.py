"""Read messages oldest first where the API always returns the newest messages of a time range.

The problem: no request returns the oldest messages first. Reading everything and reversing it would
hold a whole conversation in memory. There are two ways, and both hold one page at a time:

- Without a limit, read down to the beginning, and remember only where each page began. Then read the pages again, in
  reverse. Each page costs two requests.
- With a limit, only the first few messages are wanted. Find the beginning by bisecting the time range instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from attrs import define, field, frozen

from agentphone._paging.bounds import BEFORE_ALL_MESSAGES, MICROSECOND, SECOND, TimeRange, clamped_add
from agentphone._paging.pages import CursorSteps, MessagePage, MessageReader
from agentphone._paging.requests import MAX_MESSAGES
from agentphone._paging.same_timestamp import read_same_timestamp
from agentphone.models import Message


@define
class _PageEnd:
    """Where a page ends that is read again when everything older has been released."""

    limit: int
    before: datetime | None = None
    """The page ends before this whole second, which every API reads alike, truncated or not. None for the newest."""
    group: list[Message] = field(factory=list)
    """Or it ends with this group: the messages with one timestamp."""
    page: MessagePage | None = None
    """The page itself, if it is kept because it may be needed again soon."""


@frozen
class AscendingReader:
    """Reads messages oldest first, by `before` only."""

    reader: MessageReader
    wanted: TimeRange
    emit: Callable[[Iterable[Message]], bool]
    """Releases messages, and returns whether the limit is reached."""
    page_size: int
    has_limit: bool

    def read(self, done: datetime | None, end: datetime | None) -> CursorSteps[datetime | None]:
        """Release all messages later than `done` and earlier than `end`, oldest first.

        A stack holds the ends of the pages that remain, the oldest one on top. Each step reads the page on top. If it
        reaches down to what has been released, its messages are released and it is removed from the stack. Otherwise
        an older page end is put on top of it.

        Args:
            done: Messages up to this timestamp have been released; None for none.
            end: A whole second; None for now.

        Returns:
            The timestamp up to which everything has been released.
        """
        newest: datetime | None = None
        stack = [_PageEnd(self.page_size, before=end)]
        while stack:
            top = stack[-1]
            group_at = top.group[0].received_at if top.group else None
            last = group_at if top.before is None else clamped_add(top.before, -MICROSECOND)
            if top.page is not None and (done is None or done < top.page.oldest):
                page = top.page  # it still does not reach down to `done`
            elif top.group:
                page = yield from self.reader.read_from_group(top.group, top.limit)
            else:
                page = yield from self.reader.read(top.limit, before=top.before)
            items = [
                item
                for item in page.items
                if (last is None or item.received_at <= last) and (done is None or item.received_at > done)
            ]
            reaches_down = (
                not page.has_more
                or (done is not None and page.oldest <= done)
                or self.wanted.is_past_lower(page.items[0])
            )
            if reaches_down:
                if self.emit(items):
                    return done
                done = last if done is None or last is None else max(done, last)
                stack.pop()
            elif group_at is None or page.oldest < group_at:
                newest = page.newest if newest is None else max(newest, page.newest)
                middle = self._middle(done, page, newest)
                if middle is not None and (top.before is None or middle < top.before):
                    top.page = page
                    stack.append(_PageEnd(MAX_MESSAGES, before=middle))
                else:
                    top.page = None
                    stack.append(self._end_with(page.at(page.oldest)))
            elif top.limit < MAX_MESSAGES:
                top.limit = min(MAX_MESSAGES, 2 * top.limit)  # the group fills the page
            else:
                group = yield from read_same_timestamp(self.reader, self.wanted, top.group)
                older_than_group = clamped_add(group_at, -MICROSECOND)
                older = [
                    item for item in group.next_page.items if self.wanted.has_between(item, done, older_than_group)
                ]
                if older:
                    # They come first. The group is read again after them: holding it could take much memory.
                    next_group = group.next_page.at(older[-1].received_at)
                    stack.append(self._end_with(next_group))
                elif group.error is not None:
                    raise group.error
                else:
                    if self.emit(group.items):
                        return done
                    done = group_at
                    stack.pop()
        return done

    def _end_with(self, group: list[Message]) -> _PageEnd:
        return _PageEnd(min(MAX_MESSAGES, self.page_size + len(group)), group=group)

    def _middle(self, done: datetime | None, page: MessagePage, newest: datetime) -> datetime | None:
        """Return the whole second at which to search for the beginning next; None to read page by page.

        It lies half way in the logarithm of the age, because most histories are short: one message a second for a day
        and one message a day for 30 years are both found in about 20 requests.
        """
        lower = BEFORE_ALL_MESSAGES if self.wanted.after is None else self.wanted.after.timestamp
        start = lower if done is None else max(lower, done)
        if not self.has_limit or page.oldest - start <= page.newest - page.oldest:
            return None  # the next page probably reaches the beginning
        age = math.sqrt((newest - page.oldest + SECOND) / SECOND * ((newest - start) / SECOND))
        middle = clamped_add(newest, -timedelta(seconds=age)).replace(microsecond=0)
        return middle if start + MICROSECOND < middle < page.oldest else None
