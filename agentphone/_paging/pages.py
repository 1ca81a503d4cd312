"""Read pages of one conversation's messages, and learn from them how this API treats its cursors.

The API's documentation leaves four things open, and servers differ in them:

- Printed timestamps may be truncated to milliseconds or seconds, while the server compares them at full precision.
- `before` and `after` may include the messages at exactly that timestamp, or not.
- The server may truncate the cursors that it receives.
- `after` alone may return the oldest messages after it, or the newest.

`MessageReader` detects the first three from the pages that it receives. `cursor` detects the fourth.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from attrs import define, field, frozen

from agentphone._paging.base import MAX_EMPTY_PAGES
from agentphone._paging.bounds import MICROSECOND, MILLISECOND, SECOND, clamped_add, sort_key
from agentphone._paging.requests import MAX_MESSAGES, CursorRequest
from agentphone.errors import PaginationError
from agentphone.models import Message, Page

T = TypeVar("T")

CursorSteps = Generator[Sequence[CursorRequest], Sequence[Page[Message]], T]
"""A part of a paginator: it yields requests for messages, receives their pages, and returns a T."""


@frozen
class MessagePage:
    """A page of messages, oldest first, whatever the API's order."""

    items: list[Message]
    has_more: bool
    before: datetime | None = None
    """The `before` of its request."""
    is_contradictory: bool = False
    """True if it replaces a page that contradicts the ones before it. It is empty then."""

    @property
    def oldest(self) -> datetime:
        """The timestamp of its oldest message."""
        return self.items[0].received_at

    @property
    def newest(self) -> datetime:
        """The timestamp of its newest message."""
        return self.items[-1].received_at

    def at(self, timestamp: datetime) -> list[Message]:
        """Return the messages with one timestamp."""
        return [item for item in self.items if item.received_at == timestamp]

    def ids(self) -> set[str]:
        """Return the ids of its messages."""
        return {item.id for item in self.items}


@define
class MessageReader:
    """Reads pages for a paginator, and remembers what they show of the API.

    The messages with one printed timestamp are a group. Where the API truncates timestamps to a second, the group
    printed as `12:00:05` holds everything from 12:00:05.000000 to 12:00:05.999999. A page may end inside a group.
    Therefore the last group of a page is always read again with the next page, and consecutive pages must share it:
    only then can no message lie between them (`read_from_group`).
    """

    resolution: timedelta = SECOND
    """The finest unit in which the API has printed a timestamp so far."""
    cursor_margin: timedelta = timedelta(0)
    """How much later than the end of a group to ask, because the API truncates cursors."""
    includes_before: bool = False
    """True if the API includes the messages at exactly `before`."""
    contradiction: PaginationError | None = field(default=None, init=False)
    """The first contradiction between pages. It is raised when all that was read has been released."""

    def read(
        self, limit: int, *, before: datetime | None = None, after: datetime | None = None
    ) -> CursorSteps[MessagePage]:
        """Read one page, and update what is known of the API.

        An empty page that says hasMore is requested again, in case the conversation has just changed.
        """
        request = CursorRequest(limit=limit, before=before, after=after)
        for _ in range(MAX_EMPTY_PAGES if self.contradiction is None else 1):
            (page,) = yield (request,)
            items = sorted({item.id: item for item in page.data}.values(), key=sort_key)
            for item in items:
                self.update_resolution(item.received_at)
                self.includes_before |= before is not None and item.received_at >= before
            if before is not None and items and items[-1].received_at > clamped_add(before, SECOND):
                break  # the API ignores the cursor
            if items or not page.has_more:
                return MessagePage(items, page.has_more, before)
        return self.record_contradiction(before or after)

    def read_from_group(self, group: list[Message], limit: int) -> CursorSteps[MessagePage]:
        """Read the page that begins with a group and continues with what is older.

        Args:
            group: The last group of the page before, as far as that page showed it.
            limit: The size of the page.

        If the page shows neither the group nor anything later, the API has truncated the cursor to a time before the
        group. The method then asks with a later cursor: a millisecond more, then a second more.
        """
        timestamp, ids = group[0].received_at, {item.id for item in group}
        for margin in (timedelta(0), MILLISECOND, SECOND):
            if margin < self.cursor_margin:
                continue
            page = yield from self.read(limit, before=self.cursor_after(timestamp, margin))
            if ids <= page.ids() or (page.items and page.newest > timestamp):
                self.cursor_margin = margin
                return page
            is_inside_group = page.has_more and page.oldest == timestamp
            if is_inside_group and limit < MAX_MESSAGES:
                return page  # full of other messages of the group
        if is_inside_group:
            self.cursor_margin = SECOND
            return page
        if page.items:
            self.record_contradiction(timestamp)
        return MessagePage(group, has_more=False)  # an empty page: the conversation has been deleted

    def record_contradiction(self, cursor: datetime | None) -> MessagePage:
        """Record that the pages contradict each other, and return an empty last page to continue with.

        The paginator continues as if that was the last page, so that all that was read is released before the error.
        """
        position = "" if cursor is None else f" at {cursor.isoformat()}"
        self.contradiction = self.contradiction or PaginationError(
            f"The pages of messages{position} contradict each other: a page says hasMore but holds nothing new, or it"
            " lacks messages that it must hold. The API or a proxy is at fault."
        )
        return MessagePage([], has_more=False, is_contradictory=True)

    def update_resolution(self, timestamp: datetime) -> None:
        """Record the finest digits that the API prints."""
        if timestamp.microsecond % 1000:
            self.resolution = MICROSECOND
        elif timestamp.microsecond:
            self.resolution = min(self.resolution, MILLISECOND)

    def group_end(self, timestamp: datetime) -> datetime:
        """Return the end, exclusive, of the group printed as `timestamp`."""
        return clamped_add(timestamp, self.resolution)

    def cursor_after(self, timestamp: datetime, margin: timedelta) -> datetime:
        """Return the `before` that returns the group printed as `timestamp` and what is older."""
        return clamped_add(self.group_end(timestamp), margin - MICROSECOND if self.includes_before else margin)
