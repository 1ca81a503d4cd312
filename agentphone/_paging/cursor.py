"""Page through one conversation's messages by time, whichever way the API reads its cursors."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from attrs import define, field, frozen

from agentphone._paging.base import MAX_EMPTY_PAGES, Paginator
from agentphone._paging.bounds import BEFORE_ALL_MESSAGES, MICROSECOND, MILLISECOND, SECOND, TimeBound, clamped_add, key
from agentphone.errors import PaginationError
from agentphone.models import Message, Page

R = TypeVar("R")


T = TypeVar("T")


MAX_MESSAGES = 200
"""The largest pages that the API gives."""


IN_VAIN = 64
"""How many pages in a row may show nothing new inside one instant, before it is given up: three searches down to a
microsecond. An API that shuffles the messages of an instant anew for each page leads astray."""


@frozen(kw_only=True)
class CursorRequest:
    """One page of messages, between two instants."""

    limit: int
    before: datetime | None = None
    after: datetime | None = None


CursorSteps = Generator[Sequence[CursorRequest], Sequence[Page[Message]], T]


@frozen
class MessagePage:
    """A page of messages, oldest first whatever the API's order."""

    items: list[Message]
    has_more: bool
    before: datetime | None = None
    """The cursor that it was asked for by."""
    is_broken: bool = False
    """Whether the API gave none that makes sense."""

    @property
    def low(self) -> datetime:
        return self.items[0].received_at

    @property
    def high(self) -> datetime:
        return self.items[-1].received_at

    def at(self, instant: datetime) -> list[Message]:
        """Give the messages of one instant."""
        return [item for item in self.items if item.received_at == instant]

    def ids(self) -> set[str]:
        return {item.id for item in self.items}


@define
class _Mark:
    """Where a page ends that is read when what lies below has gone out."""

    size: int
    end: datetime | None = None
    """Before this instant: a whole second, which every API takes as it is sent."""
    held: list[Message] = field(factory=list)
    """Or with this group, all that is printed at one instant."""
    page: MessagePage | None = None
    """What it was like, if that is worth keeping."""


class CursorPaginator(Paginator[CursorRequest, Message]):
    """Walk messages in the order of `(received_at, id)`, whichever way the API reads what its page leaves open.

    The API may print instants cut to milliseconds or seconds and compare whole ones. So the messages printed as `t` are
    those from `t` up to, not including, `t` plus one printed unit: a group. A page may end inside a group, so its last
    group goes out only when the next page, which reads that group again, has shown something beyond it.

    The API may also cut the cursors that it is sent, and count the instant at the boundary or not. So every page by
    `before` must show the group that the page above it ended in: then nothing lies between the two. Where it does not,
    the walk asks a little later (`_below`).

    It asks by `before` or by `after`, never by both, but to look between two neighbouring cursors. What `before` gives
    is certain: the newest ones before it. `after` may give the oldest after it, or the newest; `_up` finds out which.

    Pages that contradict each other end the walk like a last page: all that was read goes out, and the error follows.
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
        self._left = limit
        self._before = before
        self._after = after
        self._oldest_first = oldest_first
        self._page_size = page_size
        self._unit = SECOND
        self._slack = timedelta(0)
        """How much later than a group's end to ask, because the API cuts cursors."""
        self._includes_before = False
        self._trouble: PaginationError | None = None
        for bound in (before, after):
            if bound is not None and bound.message_id is not None:
                self._update_resolution(bound.instant)  # printed by the API
        super().__init__()

    def _run(self) -> CursorSteps[None]:
        yield from (self._ascending() if self._oldest_first else self._descending())
        if self._trouble is not None and self._left != 0:
            raise self._trouble

    # Newest first

    def _descending(self) -> CursorSteps[None]:
        """Read by `before`, from the newest to the oldest."""
        edge: datetime | None = None  # what is printed later has gone out; the group at `edge` has not
        held: list[Message] = []
        size = self._page_limit()
        page = yield from self._ask(size, before=self._top())
        while True:
            items = [item for item in page.items if edge is None or item.received_at <= edge]
            if not page.has_more or (items and self._is_past_lower(items[0])):
                self._emit(reversed(items))
                return
            if edge is None or (items and items[0].received_at < edge):
                edge = items[0].received_at
                if self._emit(item for item in reversed(items) if item.received_at > edge):
                    return
                held = page.at(edge)
                size = self._page_limit(held=len(held))
            elif size < MAX_MESSAGES:
                size = min(MAX_MESSAGES, 2 * size)
            else:
                group, page, failure = yield from self._read_same_timestamp(held)
                if failure is not None:
                    raise failure
                if self._emit(reversed(group)):
                    return
                page = MessagePage([item for item in page.items if item.received_at < edge], page.has_more)
                edge = None
                continue
            page = yield from self._below(held, size)

    # Oldest first

    def _ascending(self) -> CursorSteps[None]:
        """Find out what `after` alone gives, then read by it, or climb by `before`."""
        after = BEFORE_ALL_MESSAGES
        if self._after is not None:
            after = (
                self._after.instant
                if self._after.message_id is None
                else clamped_add(self._after.instant, -MICROSECOND)
            )
        page = yield from self._open(after)
        if not page.has_more:
            self._emit(page.items)
        elif (yield from self._is_next(page, None)):
            yield from self._forward(page)
        else:
            yield from self._ascending_by_before(None, self._top())

    def _open(self, after: datetime) -> CursorSteps[MessagePage]:
        """Read a page by `after` that shows more than one instant, if a page can."""
        size = self._page_limit()
        while True:
            page = yield from self._ask(size, after=after)
            if not page.has_more or page.low < page.high or size == MAX_MESSAGES:
                return page
            size = min(MAX_MESSAGES, 2 * size)

    def _is_next(self, page: MessagePage, done: datetime | None) -> CursorSteps[bool]:
        """Look whether a page that `after` gave is the oldest: whether nothing lies between `done` and it."""
        if page.low == page.high:
            return False  # one instant, and perhaps not all of it
        ids, held = page.ids(), page.at(page.low)
        size = self._page_limit(held=len(held))
        while True:
            probe = yield from self._below(held, size)
            if any(item.id not in ids and self._is_between(done, item, page.low) for item in probe.items):
                return False
            if not probe.has_more or probe.low < page.low:
                return True
            if size == MAX_MESSAGES:
                return False
            size = min(MAX_MESSAGES, 2 * size)

    def _is_between(self, done: datetime | None, item: Message, end: datetime) -> bool:
        is_done = (done is not None and item.received_at <= done) or self._is_past_lower(item)
        return item.received_at <= end and not is_done

    def _forward(self, page: MessagePage) -> CursorSteps[None]:
        """Read by `after`, given the oldest page, where `after` gives the oldest ones."""
        size = 0
        while True:
            edge = page.high
            if not page.has_more or self._is_past_upper(page.items[-1]):
                self._emit(page.items)
                return
            if self._emit(item for item in page.items if item.received_at < edge):
                return
            held = page.at(edge)
            size = max(size, self._page_limit(held=len(held)))
            following = yield from self._ask(size, after=clamped_add(edge, -MICROSECOND))
            if {item.id for item in held} <= following.ids():
                page = MessagePage([item for item in following.items if item.received_at >= edge], following.has_more)
                if page.high > edge or not page.has_more:
                    size = 0
                    continue
            elif size == MAX_MESSAGES:
                # Not what follows: messages came so fast that this is the newest page after all. Or the API includes
                # the instant before, or cuts the cursor, and a page is full of what has gone out.
                yield from self._ascending_by_before(clamped_add(edge, -MICROSECOND), self._top())
                return
            else:
                page = MessagePage(held, has_more=True)
            if size < MAX_MESSAGES:
                size = min(MAX_MESSAGES, 2 * size)
                continue
            # More than a page can hold: read to the end of that second by `before`.
            end = whole_second(self._end_of(edge))
            edge = (yield from self._ascending_by_before(clamped_add(edge, -MICROSECOND), end)) or edge
            if self._left == 0:
                return
            page = yield from self._open(edge)
            page = MessagePage([item for item in page.items if item.received_at > edge], page.has_more)
            if not page.items and not page.has_more:
                return
            # An empty one is full of the instant at its boundary, which the API includes.
            if page.has_more and not (page.items and (yield from self._is_next(page, edge))):
                yield from self._ascending_by_before(edge, self._top())
                return
            size = 0

    def _ascending_by_before(self, done: datetime | None, end: datetime | None) -> CursorSteps[datetime | None]:
        """Read by `before`, oldest first: down to what has gone out, noting where each page began, then up to `end`.

        Each page is read twice, and one is held at a time. With a limit, it goes down by halving the time instead.
        `done`: what is printed up to then has gone out. Give how far it came.
        """
        newest: datetime | None = None
        stack = [_Mark(self._page_size, end=end)]
        while stack:
            mark = stack[-1]
            edge = mark.held[0].received_at if mark.held else None
            last = edge if mark.end is None else clamped_add(mark.end, -MICROSECOND)
            if mark.page is not None and (done is None or done < mark.page.low):
                page = mark.page  # it still does not reach down
            elif mark.held:
                page = yield from self._below(mark.held, mark.size)
            else:
                page = yield from self._ask(mark.size, before=mark.end)
            items = [
                item
                for item in page.items
                if (last is None or item.received_at <= last) and (done is None or item.received_at > done)
            ]
            is_lowest = (
                not page.has_more or (done is not None and page.low <= done) or self._is_past_lower(page.items[0])
            )
            if is_lowest:
                if self._emit(items):
                    return done
                done = last if done is None or last is None else max(done, last)
                stack.pop()
            elif edge is None or page.low < edge:
                newest = page.high if newest is None else max(newest, page.high)
                middle = self._middle(done, page, newest)
                if middle is not None and (mark.end is None or middle < mark.end):
                    mark.page = page
                    stack.append(_Mark(MAX_MESSAGES, end=middle))
                else:
                    mark.page = None
                    stack.append(self._mark(page.at(page.low)))
            elif mark.size < MAX_MESSAGES:
                mark.size = min(MAX_MESSAGES, 2 * mark.size)
            else:
                group, page, failure = yield from self._read_same_timestamp(mark.held)
                below = [item for item in page.items if self._is_between(done, item, clamped_add(edge, -MICROSECOND))]
                if below:
                    stack.append(self._mark(page.at(below[-1].received_at)))
                elif failure is not None:
                    raise failure
                else:
                    if self._emit(group):
                        return done
                    done = edge
                    stack.pop()
        return done

    def _mark(self, held: list[Message]) -> _Mark:
        return _Mark(min(MAX_MESSAGES, self._page_size + len(held)), held=held)

    def _middle(self, done: datetime | None, page: MessagePage, newest: datetime) -> datetime | None:
        """Say where to look for the beginning next: half way to what has gone out, as a whole second.

        Half way in the logarithm of the age, since most histories are short. None if a page may reach it anyway.
        """
        lower = BEFORE_ALL_MESSAGES if self._after is None else self._after.instant
        start = lower if done is None else max(lower, done)
        if self._left is None or page.low - start <= page.high - page.low:
            return None
        age = math.sqrt((newest - page.low + SECOND) / SECOND * ((newest - start) / SECOND))
        middle = clamped_add(newest, -timedelta(seconds=age)).replace(microsecond=0)
        return middle if start + MICROSECOND < middle < page.low else None

    # One instant

    def _read_same_timestamp(
        self, held: list[Message]
    ) -> CursorSteps[tuple[list[Message], MessagePage, PaginationError | None]]:
        """Read every message printed at the instant of those held, when they fill more than the largest page.

        It reads pages that end at ever earlier instants inside the printed unit. Each must share a message with the one
        above it, so that nothing lies between. Give also the page that goes on below, and what went wrong, if more than
        a page lies where there is no cursor.
        """
        instant = held[0].received_at
        failure: PaginationError | None = None
        before = datetime.max.replace(tzinfo=UTC)
        found: dict[str, Message] = {}
        known: set[str] = set()
        idle = 0
        step = self._unit / 2
        while True:
            while self._cursor(instant, self._slack) < before:
                # At the start, and where finer digits have shown: then the group is narrower than it seemed.
                page = yield from self._below(held, MAX_MESSAGES)
                before = page.before or instant
            bottom = (
                clamped_add(instant, -MICROSECOND) if self._includes_before else instant
            )  # has none of the group before it
            found.update((item.id, item) for item in page.at(instant))
            if not page.has_more or page.low < instant or before <= bottom:
                if page.has_more and page.low >= instant:
                    page = self._contradict(before)
                return sorted(found.values(), key=key), page, failure
            above = page
            if not above.ids() <= known:
                idle = 0
            known |= above.ids()
            lower, guess = bottom, before - step
            while before - lower > MICROSECOND and idle < IN_VAIN:
                if not lower < guess < before:
                    guess = lower + (before - lower) // 2
                page = yield from self._ask(MAX_MESSAGES, before=guess)
                ids = page.ids()
                idle += 1
                if not ids & above.ids():
                    lower = guess
                elif page.has_more and page.low >= instant and ids <= known:
                    before, step, above = guess, min(2 * step, self._unit), page
                else:
                    step, before = before - guess, guess
                    break
            else:
                page = yield from self._ask(MAX_MESSAGES, before=lower)
                is_out = above.low > instant or self._is_past_upper(above.items[0])
                is_next = page.is_broken or page.ids() & above.ids()
                if is_next or (idle < IN_VAIN and (yield from self._is_all(above, before, is_out=is_out))):
                    before = lower
                    continue
                page = yield from self._ask(MAX_MESSAGES, before=before)
                if page.ids() <= known or idle >= IN_VAIN:  # and not as much again has come in meanwhile
                    failure = PaginationError(
                        f"{len(above.items)} or more messages were received at {instant.isoformat()}, as many as a page"
                        " can hold, and the API has no cursor between them. All that the order allows was given before;"
                        " to go on beyond that instant, give it as before= or after=."
                    )
                    before = bottom
                    page = yield from self._ask(MAX_MESSAGES, before=before)

    def _is_all(self, above: MessagePage, before: datetime, *, is_out: bool) -> CursorSteps[bool]:
        """Look whether the messages before a cursor, but not before the one a tick earlier, are but a page's.

        Where cursors are cut, a stretch that begins a tick earlier may leave some of them out, so find the exact one.
        `is_out`: they are not wanted, so it does not matter how many they are, if all are printed as one instant.
        """
        finest = MICROSECOND if before.microsecond % 1000 else MILLISECOND if before.microsecond else SECOND
        if is_out and not self._includes_before and self._unit >= finest:
            return True
        is_clear = True

        def look(back: timedelta) -> CursorSteps[MessagePage | None]:
            nonlocal is_clear
            page = yield from self._ask(MAX_MESSAGES, before=before, after=clamped_add(before, -back))
            shown = len(above.ids() & page.ids())
            is_clear = is_clear and shown in (0, len(above.items))
            return page if shown == len(above.items) else None

        page = yield from look(MICROSECOND)
        if page is None:
            # The API includes neither end of a stretch.
            for back in (2 * MICROSECOND, MILLISECOND + MICROSECOND, SECOND + MICROSECOND):
                page = yield from look(back)
                if page is not None:
                    break
        elif (alone := (yield from look(timedelta(0)))) is not None:
            # It includes both. If it cuts cursors too, the first look began early enough.
            page = page if (yield from look(-MICROSECOND)) is not None else alone
        elif before.microsecond % 1000 == 0:
            return False  # It includes one, or cuts cursors.
        return page is not None and is_clear and (is_out or not page.has_more)

    # What all of them use

    def _below(self, held: list[Message], size: int) -> CursorSteps[MessagePage]:
        """Ask for a page that begins with the group held, the last one of a page, and goes on below it.

        If it shows neither the group nor anything later, the API has cut the cursor: ask later.
        """
        edge, ids = held[0].received_at, {item.id for item in held}
        for slack in (timedelta(0), MILLISECOND, SECOND):
            if slack < self._slack:
                continue
            page = yield from self._ask(size, before=self._cursor(edge, slack))
            if ids <= page.ids() or (page.items and page.high > edge):
                self._slack = slack
                return page
            is_inside = page.has_more and page.low == edge
            if is_inside and size < MAX_MESSAGES:
                return page  # full of others of the group
        if is_inside:
            self._slack = SECOND
            return page
        if page.items:
            self._contradict(edge)
        return MessagePage(held, has_more=False)  # if there is none at all, the conversation has gone

    def _cursor(self, edge: datetime, slack: timedelta) -> datetime:
        """Give the `before` that has a group, and what is below it, before it."""
        return clamped_add(self._end_of(edge), slack - MICROSECOND if self._includes_before else slack)

    def _ask(
        self, limit: int, *, before: datetime | None = None, after: datetime | None = None
    ) -> CursorSteps[MessagePage]:
        """Ask for a page, and learn from what it shows of the API."""
        request = CursorRequest(limit=limit, before=before, after=after)
        for _ in range(MAX_EMPTY_PAGES if self._trouble is None else 1):
            (page,) = yield (request,)
            items = sorted({item.id: item for item in page.data}.values(), key=key)
            for item in items:
                self._update_resolution(item.received_at)
                self._includes_before |= before is not None and item.received_at >= before
            if before is not None and items and items[-1].received_at > clamped_add(before, SECOND):
                break  # it takes no heed of the cursor
            if items or not page.has_more:
                return MessagePage(items, page.has_more, before)
        return self._contradict(before or after)

    def _contradict(self, cursor: datetime | None) -> MessagePage:
        """Note that the pages contradict each other. The walk goes on as if this was the last, and then says so."""
        where = "" if cursor is None else f" at {cursor.isoformat()}"
        self._trouble = self._trouble or PaginationError(
            f"The messages{where} go in circles: the page holds nothing that was not read before, and still says"
            " hasMore, or does not hold what it must. The API or a proxy is at fault."
        )
        return MessagePage([], has_more=False, is_broken=True)

    def _update_resolution(self, printed: datetime) -> None:
        """Notice the finest digits that the API prints."""
        if printed.microsecond % 1000:
            self._unit = MICROSECOND
        elif printed.microsecond:
            self._unit = min(self._unit, MILLISECOND)

    def _end_of(self, instant: datetime) -> datetime:
        """Give the end of the group that is printed as `instant`."""
        return clamped_add(instant, self._unit)

    def _top(self) -> datetime | None:
        """Give the end of what is wanted, rounded up to a second, so that it is the same cut or not; None for now."""
        if self._before is None:
            return None
        bound = self._before.instant if self._before.message_id is None else self._end_of(self._before.instant)
        return whole_second(bound)

    def _page_limit(self, held: int = 0) -> int:
        """Say how many to ask for: what is wanted, and what is `held` back and will be read again."""
        wanted = self._page_size if self._left is None else min(self._page_size, self._left)
        return min(MAX_MESSAGES, wanted + held)

    def _emit(self, items: Iterable[Message]) -> bool:
        """Let out what lies between the bounds, up to the limit; say whether that is reached."""
        for item in items:
            if self._left == 0:
                return True
            if self._is_inside(item):
                self._ready.append(item)
                if self._left is not None:
                    self._left -= 1
        return self._left == 0

    def _is_inside(self, item: Message) -> bool:
        """Whether the caller wants an item: strictly between the bounds."""
        upper, lower = self._before, self._after
        if self._is_past_upper(item) or self._is_past_lower(item):
            return False
        if upper and upper.message_id is not None and key(item) >= (upper.instant, upper.message_id):
            return False
        return not (lower and lower.message_id is not None and key(item) <= (lower.instant, lower.message_id))

    def _is_past_upper(self, item: Message) -> bool:
        """Whether an item's whole instant, and all later ones, lie beyond the upper bound."""
        bound = self._before
        if bound is None:
            return False
        return item.received_at > bound.instant or (bound.message_id is None and item.received_at == bound.instant)

    def _is_past_lower(self, item: Message) -> bool:
        """Whether an item's whole instant, and all earlier ones, lie beyond the lower bound."""
        bound = self._after
        if bound is None:
            return False
        return item.received_at < bound.instant or (bound.message_id is None and item.received_at == bound.instant)


def whole_second(instant: datetime) -> datetime:
    """Round an instant up."""
    return instant if instant.microsecond == 0 else clamped_add(instant.replace(microsecond=0), SECOND)
