"""The walks: what to ask next, and which items may go out. Pure state machines: no I/O, no clock, no task.

A walk is asked for its `next_request`, is given the page that answers it, and says which items are ready; no request
means that it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from attrs import frozen

from agentphone.models import Conversation, Message, Page

R = TypeVar("R", covariant=True)
T = TypeVar("T")


class Walk(Protocol[R, T]):
    """One pass through a list."""

    def next_request(self) -> R | None:
        """Say what to ask; None when the walk is over. Asking twice gives the same request."""

    def receive(self, page: Page[T]) -> Sequence[T]:
        """Take the page that answers the request, and give the items that may go out."""
        ...


@frozen(kw_only=True)
class OffsetRequest:
    """One page of a list that is read by offset."""

    limit: int
    offset: int


@frozen(kw_only=True)
class CursorRequest:
    """One page of a list that is read by instants, both exclusive."""

    limit: int
    before: datetime | None
    after: datetime | None


@frozen
class Bound:
    """Where a walk of messages begins or ends: an instant, or exactly behind one message."""

    instant: datetime
    message_id: str | None = None


def read_bound(value: datetime | str | Message | None, name: str) -> Bound | None:
    """Read what a caller gives as `before` or `after`.

    Raises:
        ValueError: A date without a time, an instant without an offset, or no ISO 8601 at all.
        TypeError: It is none of the types above.
    """
    if value is None:
        return None
    if isinstance(value, Message):
        return Bound(value.received_at, value.id)
    if not isinstance(value, str | datetime):
        raise TypeError(f"{name} is an aware datetime, an ISO 8601 string or a Message, not {type(value).__name__}")
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} is not ISO 8601: {value!r}") from None
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise ValueError(f"{name} needs a time and an offset from UTC, so that it means one instant: {value!r}")
    try:
        return Bound(instant.astimezone(UTC))
    except OverflowError:
        raise ValueError(f"{name} lies outside the years 1 to 9999 in UTC: {value!r}") from None


class OffsetWalk:
    """Walk a list by offset, from the front."""

    def __init__(self, *, limit: int | None, offset: int, page_size: int) -> None:
        self._left = limit
        self._page_size = page_size
        self._next: OffsetRequest | None = OffsetRequest(limit=self._ask(), offset=offset)
        self._seen: set[str] = set()

    def _ask(self) -> int:
        return self._page_size if self._left is None else min(self._page_size, self._left)

    def next_request(self) -> OffsetRequest | None:
        """Say which page to ask for."""
        return self._next

    def receive(self, page: Page[Conversation]) -> Sequence[Conversation]:
        """Give what the page holds and no page before it held."""
        asked = self._next
        assert asked is not None  # noqa: S101  # receive() answers a request
        fresh = [item for item in page.data if item.id not in self._seen]
        if self._left is not None:
            fresh = fresh[: self._left]
            self._left -= len(fresh)
        self._seen.update(item.id for item in fresh)
        over = not page.has_more or not page.data or self._left == 0
        self._next = None if over else OffsetRequest(limit=self._ask(), offset=asked.offset + len(page.data))
        return fresh


class CursorWalk:
    """Walk messages by instant, from the newest to the oldest.

    It asks by `before` alone: what the API returns for `after` alone is open, so where the walk ends is judged here.
    """

    def __init__(
        self, *, limit: int | None, before: Bound | None, after: Bound | None, oldest_first: bool, page_size: int
    ) -> None:
        self._left = limit
        self._before = before
        self._after = after
        self._page_size = page_size
        self._oldest_first = oldest_first
        self._held: list[Message] = []
        self._seen_at_edge: set[str] = set()
        self._next: CursorRequest | None = self._ask(None if before is None else before.instant)

    def _ask(self, before: datetime | None) -> CursorRequest:
        # Oldest first, the wanted items come last: the whole way there is read in full pages.
        size = self._page_size if self._left is None or self._oldest_first else min(self._page_size, self._left)
        return CursorRequest(limit=size, before=before, after=None)

    def next_request(self) -> CursorRequest | None:
        """Say which page to ask for."""
        return self._next

    def receive(self, page: Page[Message]) -> Sequence[Message]:
        """Give what the page holds between the bounds; oldest first, everything at the end."""
        newest_first = sorted(page.data, key=_key, reverse=True)
        fresh = [item for item in newest_first if item.id not in self._seen_at_edge]
        wanted = [item for item in fresh if self._is_inside(item)]
        over = not page.has_more or not fresh or (self._after is not None and not self._is_after(fresh[-1]))
        if not over:
            edge = fresh[-1].received_at
            self._seen_at_edge = {item.id for item in newest_first if item.received_at == edge}
            self._next = self._ask(edge)
        if self._oldest_first:
            self._held += wanted
            if not over:
                return []
            wanted = self._held[::-1]
        if self._left is not None:
            wanted = wanted[: self._left]
            self._left -= len(wanted)
            over = over or self._left == 0
        if over:
            self._next = None
        return wanted

    def _is_inside(self, item: Message) -> bool:
        bound = self._before
        if bound is not None and not (
            item.received_at < bound.instant
            or (bound.message_id is not None and _key(item) < (bound.instant, bound.message_id))
        ):
            return False
        return self._is_after(item)

    def _is_after(self, item: Message) -> bool:
        bound = self._after
        if bound is None or item.received_at > bound.instant:
            return True
        return bound.message_id is not None and _key(item) > (bound.instant, bound.message_id)


def _key(item: Message) -> tuple[datetime, str]:
    return item.received_at, item.id
