"""The walks: what to ask next, and which items may go out. Pure state machines: no I/O, no clock, no task.

A walk is asked for its `next_requests`, is given the pages that answer them, and gives the items that are ready.
Inside, each is a generator that yields requests and is sent their pages, and reads from top to bottom.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from attrs import define, field, frozen

from agentphone.errors import PaginationError
from agentphone.models import Conversation, Message, Page

R = TypeVar("R")
T = TypeVar("T")

MAX_CONVERSATIONS = 100
MAX_MESSAGES = 200
"""The largest pages that the API gives."""

AHEAD = 8
"""How many times as many pages are planned at a time as may be in flight at once. So the next one goes out as soon as
one is there, and all of them wait for the slowest more seldom."""

PATIENCE = 5
"""How many pages in a row may bring nothing, before the walk says that the API goes in circles."""

READINGS = 3
"""How many times a list that moves all the time is read as a whole, at most."""

TICK = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
BEFORE_ALL_MESSAGES = datetime(1900, 1, 1, tzinfo=UTC)


class Walk(Generic[R, T]):
    """One pass through a list."""

    def __init__(self) -> None:
        self._ready: list[T] = []
        self._failure: PaginationError | None = None
        self._steps = self._walk()
        self._requests: Sequence[R] = next(self._steps)

    @abstractmethod
    def _walk(self) -> Generator[Sequence[R], Sequence[Page[T]], None]:
        """Yield requests, be sent their pages, put what may go out into `_ready`."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to ask, and nothing wrong to tell."""
        return not self._requests and self._failure is None

    def next_requests(self) -> Sequence[R]:
        """Say what to ask; several may be in flight at once; none when the walk is over. Asking again is harmless.

        Raises:
            PaginationError: The pages contradict each other. Everything that could go out has gone out.
        """
        if self._failure is not None:
            raise self._failure
        return self._requests

    def receive(self, pages: Sequence[Page[T]]) -> Sequence[T]:
        """Take the pages that answer the requests, in their order, and give the items that may go out."""
        self._ready, self._requests = [], ()
        try:
            self._requests = self._steps.send(pages)
        except StopIteration:
            pass
        except PaginationError as error:
            self._failure = error
        return self._ready


@frozen(kw_only=True)
class OffsetRequest:
    """One page of a list that is read by offset."""

    limit: int
    offset: int


@frozen(kw_only=True)
class CursorRequest:
    """One page of messages, between two instants."""

    limit: int
    before: datetime | None = None
    after: datetime | None = None


OffsetSteps = Generator[Sequence[OffsetRequest], Sequence[Page[Conversation]], T]
CursorSteps = Generator[Sequence[CursorRequest], Sequence[Page[Message]], T]


# Conversations, by offset

Trace = tuple[str, datetime | None, int | None]


@define
class _Sweep:
    """What one way through the list, from its front, has shown."""

    size: int
    concurrency: int = 1
    floor: datetime | None = None
    """Where a second look at the front may end: at conversations whose last message is older."""
    is_overlapping: bool = False
    """Whether each page begins with the last item of the one before, also where a total would show deletions."""
    began_at: datetime | None = None
    """The server's time when it began: that of the newest message then."""
    front: list[Trace] = field(factory=list)
    """What stood at the front of the list, as many as a page can hold."""
    requests: int = 0
    has_moved: bool = False
    total: int | None = None
    """How many conversations the API counted last."""
    gone: int = 0
    """By how much that has fallen in all: some of those that were read may have disappeared."""
    traces: dict[str, Trace] = field(factory=dict)
    """What it has read, as it was then, by id."""


class OffsetWalk(Walk[OffsetRequest, Conversation]):
    """Walk the conversations, most recent activity first, while the list moves.

    What moves: a message brings its conversation to the front, and those above its old place down by one; a new
    conversation does that to all; one that disappears brings those below it up. A message that is shown late brings
    its conversation to a place in the middle. So:

    - What moves down is read twice, and goes out once: ids are remembered.
    - What moves up could be missed: `total` falls by as much, and the walk steps back by that. Where the API gives no
      total, each page begins with the last item of the one before.
    - What jumps to the front unseen is found by reading the front again, down to a conversation that is as it was: all
      that jumped stand above it. It must also be older than the newest message was when the walk began: one that is
      dated in the future stays above those that jump. When that takes more than one request it is itself a walk, and
      is done again.
    - What moves to the middle unseen leaves a trace: something was read twice, or `total` has changed. If fewer
      conversations are known after that than `total` counts, or there is no total, the list is read again as a whole,
      with pages that overlap: up to `READINGS` times, for a list that never stands still must come to an end.

    What this assumes: a conversation that changes its place changes its date or its count of messages; fewer of them
    do so between two requests than half a page holds; none passes the walk unseen in every reading; and none begins
    between the same two answers in which another disappears, where the total alone would tell of both.

    With a `floor` it ends at conversations whose last message is older than that.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        offset: int,
        page_size: int,
        concurrency: int = 1,
        floor: datetime | None = None,
    ) -> None:
        self._left = limit
        self._start = offset
        self._page_size = page_size
        self._concurrency = concurrency
        self._floor = floor
        self._given: set[str] = set()
        self._held: dict[str, Conversation] = {}
        """What was read on a page that is to be read again, and has not gone out yet."""
        self._largest = 0
        """How many the largest page held."""
        self._most = MAX_CONVERSATIONS
        """How many the API gives at once."""
        super().__init__()

    def _walk(self) -> OffsetSteps[None]:
        is_promised = self._left is None and self._start == 0
        for reading in range(READINGS):
            is_again = reading > 0
            sweep = yield from self._sweep(_Sweep(self._page_size, self._concurrency, is_overlapping=is_again))
            if not is_promised or sweep.requests == 1:
                return
            # Pages in flight at once are read in any order: only when they overlap do they show all that moves.
            if (yield from self._look_again(sweep, is_sure=is_again or self._concurrency == 1)):
                return

    def _look_again(self, sweep: _Sweep, *, is_sure: bool) -> OffsetSteps[bool]:
        """Find at the front of the list what has jumped there; say whether nothing can be missing then."""
        known = dict(sweep.traces)
        before, head = None, sweep
        while before is None or 1 < head.requests < before.requests:  # or it never catches up with a list this busy
            before = head
            head = _Sweep(MAX_CONVERSATIONS, floor=before.began_at, total=before.total, gone=before.gone)
            yield from self._sweep(head, front=before.front, known=known)
            if not is_sure:
                return not (sweep.has_moved or head.has_moved)
            known |= head.traces
        if self._floor is not None or not sweep.has_moved:
            return True
        return head.total is not None and len(known) >= head.total + head.gone

    def _sweep(
        self, sweep: _Sweep, front: list[Trace] | None = None, known: dict[str, Trace] | None = None
    ) -> OffsetSteps[_Sweep]:
        """Go through the list from its front; stop at once where the front is still `front`.

        With `known`, which is what was read before, it ends only at a conversation that has not changed since.
        """
        offset = reached = self._start
        back = idle = 0
        while self._left != 0:
            requests = self._plan(sweep, offset, back, idle)
            pages = yield requests
            self._held.update((item.id, item) for page in pages for item in page.data)
            for request, page in zip(requests, pages, strict=True):
                is_first = sweep.requests == 0
                sweep.requests += 1
                total, sweep.total = sweep.total, page.total
                fallen = 0 if total is None or page.total is None else max(0, total - page.total)
                sweep.gone += fallen
                sweep.has_moved |= not is_first and page.total != total
                fresh = [item for item in page.data if item.id not in sweep.traces]
                if not fresh and not back and request.offset + request.limit > reached:
                    idle, sweep.size = idle + 1, MAX_CONVERSATIONS
                    self._refuse_circles(request, page, idle)
                if request.offset > self._start and (fallen or not _continues(sweep, request, page, offset)):
                    # Items have moved up behind the walk's back: read this page again, from further ahead.
                    sweep.has_moved = True
                    offset, back = request.offset, max(fallen, 2 * back, 1)
                    break
                back = 0
                asked_again = max(0, offset - request.offset)
                sweep.has_moved |= len(fresh) < len(page.data) - asked_again
                self._take(sweep, page)
                if is_first:
                    sweep.began_at = max(
                        (item.last_message_at for item in page.data if item.last_message_at), default=None
                    )
                    if front is not None:
                        sweep.has_moved = sweep.front != front[: len(sweep.front)]
                        if not sweep.has_moved:
                            return sweep
                offset = request.offset + len(page.data)
                reached = max(reached, offset)
                idle = 0 if fresh else idle
                # A total that says more than hasMore is followed as long as that brings anything.
                is_last = not page.has_more and (page.total is None or offset >= page.total or not fresh)
                if is_last or any(self._ends_at(item, sweep, known) for item in page.data):
                    return sweep
                self._largest = max(self._largest, len(page.data))
                if len(page.data) < request.limit:
                    if page.has_more and page.data:
                        self._most = self._largest
                    break  # shorter than asked for: the pages behind it, asked for at once, would leave a gap
        return sweep

    def _ends_at(self, item: Conversation, sweep: _Sweep, known: dict[str, Trace] | None) -> bool:
        """Whether a sweep may end at the page that holds this conversation."""
        if known is None or _is_older(item, self._floor):
            return _is_older(item, self._floor)
        is_old = item.last_message_at is not None if sweep.floor is None else _is_older(item, sweep.floor)
        return is_old and known.get(item.id) == trace_of(item)

    def _plan(self, sweep: _Sweep, offset: int, back: int, idle: int) -> list[OffsetRequest]:
        """Say what to ask from `offset` on, or from `back` before it."""
        total = sweep.total
        overlap = 1 if sweep.requests > 0 and (total is None or sweep.is_overlapping) else 0
        requests: list[OffsetRequest] = []
        end = offset
        most = sweep.concurrency * (1 if idle or sweep.concurrency == 1 else AHEAD)
        while not requests or (len(requests) < most and total is not None and end < total):
            wanted = sweep.size if self._left is None else min(sweep.size, self._left - (end - offset))
            if wanted <= 0:
                break
            if idle:
                wanted = sweep.size  # the few that `limit` wants may move away as fast as the walk comes after them
            begin = max(self._start, end - max(overlap, 0 if requests else back))
            limit = min(self._most, wanted + end - begin)
            requests.append(OffsetRequest(limit=limit, offset=begin))
            end = begin + limit
        return requests

    def _take(self, sweep: _Sweep, page: Page[Conversation]) -> None:
        """Remember the page's items, and let out those that were not read before."""
        for item in page.data:
            if item.id not in sweep.traces and len(sweep.front) < MAX_CONVERSATIONS:
                sweep.front.append(trace_of(item))
            sweep.traces[item.id] = trace_of(item)
            self._emit(item)

    def _emit(self, item: Conversation) -> None:
        self._held.pop(item.id, None)
        if item.id not in self._given and self._left != 0:
            self._given.add(item.id)
            self._ready.append(item)
            if self._left is not None:
                self._left -= 1

    def _refuse_circles(self, request: OffsetRequest, page: Page[Conversation], idle: int) -> None:
        if idle > PATIENCE and page.has_more:
            for item in list(self._held.values()):
                self._emit(item)
            raise PaginationError(
                f"GET /v1/conversations goes in circles: {idle} pages, the last at offset {request.offset}, held"
                " nothing that was not read before, and still say hasMore. The API or a proxy is at fault."
            )


def _continues(sweep: _Sweep, request: OffsetRequest, page: Page[Conversation], offset: int) -> bool:
    """Whether nothing can lie between what a sweep has read and this page.

    Two conversations change their order only when one of them gets a message. So a page that begins with one that was
    read, and is as it was then, has behind it what was behind it then.
    """
    if request.offset >= offset:
        return True  # asked for where the page before it ended: `total` alone tells
    return bool(page.data) and sweep.traces.get(page.data[0].id) == trace_of(page.data[0])


def trace_of(item: Conversation) -> Trace:
    """Give what tells a conversation, and changes whenever it moves."""
    return item.id, item.last_message_at, item.message_count


def _is_older(item: Conversation, floor: datetime | None) -> bool:
    # One without a date says nothing of where in the list it stands: databases sort those to either end.
    return floor is not None and item.last_message_at is not None and item.last_message_at < floor


# Messages, by instant


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


@frozen
class _Slice:
    """A page of messages, oldest first whatever the API's order."""

    items: list[Message]
    has_more: bool

    @property
    def low(self) -> datetime:
        return self.items[0].received_at

    @property
    def high(self) -> datetime:
        return self.items[-1].received_at

    def at(self, instant: datetime) -> int:
        """Count the messages of one instant."""
        return sum(item.received_at == instant for item in self.items)


class CursorWalk(Walk[CursorRequest, Message]):
    """Walk messages in the order of `(received_at, id)`, whichever way the API reads what its page leaves open.

    The API may print instants cut to milliseconds or seconds and compare whole ones. So the messages printed as `t` are
    those from `t` up to, not including, `t` plus one printed unit: a group. A page may end inside a group, so its last
    group goes out only when the next page, which reads that group again, has shown something beyond it.

    It asks by `before` or by `after`, never by both, but to look at a single instant. What `before` gives is certain:
    the newest ones before it. `after` may give the oldest after it, or the newest; `_up` finds out which. Inside, a
    stretch of time has its first instant in it (`start`) and the instant at its end not (`end`); `_ask` turns these
    into the cursors of an API that includes them or does not.
    """

    def __init__(
        self, *, limit: int | None, before: Bound | None, after: Bound | None, oldest_first: bool, page_size: int
    ) -> None:
        self._left = limit
        self._before = before
        self._after = after
        self._oldest_first = oldest_first
        self._page_size = page_size
        self._unit = SECOND
        self._includes_after = self._includes_before = False
        for bound in (before, after):
            if bound is not None and bound.message_id is not None:
                self._learn_unit(bound.instant)  # printed by the API
        super().__init__()

    def _walk(self) -> CursorSteps[None]:
        return self._up() if self._oldest_first else self._down()

    # Newest first

    def _down(self) -> CursorSteps[None]:
        """Read by `before`, from the newest to the oldest."""
        end = self._top()
        edge: datetime | None = None  # what is printed later has gone out; the group at `edge` has not
        size = self._want()
        while True:
            page = yield from self._ask(size, end=end)
            items = [item for item in page.items if edge is None or item.received_at <= edge]
            if not page.has_more or (items and self._is_past_lower(items[0])):
                self._emit(reversed(items))
                return
            if items and (edge is None or items[0].received_at < edge):
                edge = items[0].received_at
                if self._emit(item for item in reversed(items) if item.received_at > edge):
                    return
                end, size = self._end_of(edge), self._want(held=page.at(edge))
            elif size < MAX_MESSAGES:
                size = min(MAX_MESSAGES, 2 * size)
            elif edge is None or (not items and end == self._end_of(edge)):
                raise self._contradiction(end)
            elif not items:
                end = self._end_of(edge)  # what came in behind the group has shown finer digits, and shuts it out
            else:
                group = yield from self._group(edge)
                if self._emit(reversed(group)):
                    return
                end, edge, size = edge, shift(edge, -TICK), self._want()  # the whole group has gone out

    # Oldest first

    def _up(self) -> CursorSteps[None]:
        """Find out what `after` alone gives, then read by it, or climb by `before`."""
        start = BEFORE_ALL_MESSAGES
        if self._after is not None:
            start = self._after.instant if self._after.message_id is not None else shift(self._after.instant, TICK)
        page = yield from self._open(start)
        if not page.has_more:
            self._emit(page.items)
        elif (yield from self._is_next(page, None)):
            yield from self._forward(page)
        else:
            yield from self._climb(None)

    def _open(self, start: datetime) -> CursorSteps[_Slice]:
        """Read a page by `after` that shows more than one instant, if a page can."""
        size = self._want()
        while True:
            page = yield from self._ask(size, start=start)
            if not page.has_more or page.low < page.high or size == MAX_MESSAGES:
                return page
            size = min(MAX_MESSAGES, 2 * size)

    def _is_next(self, page: _Slice, done: datetime | None) -> CursorSteps[bool]:
        """Look whether a page that `after` gave is the oldest: whether nothing lies between `done` and it."""
        ids = {item.id for item in page.items}
        top = self._top()
        end = self._end_of(page.low) if top is None else min(self._end_of(page.low), top)
        size = self._want(held=page.at(page.low))
        while True:
            probe = yield from self._ask(size, end=end)
            # A boundary that is included adds a part of the group that begins there.
            whole = [
                item for item in probe.items if item.received_at < end and (done is None or item.received_at > done)
            ]
            if any(item.id not in ids and not self._is_past_lower(item) for item in whole):
                return False
            if not probe.has_more or (probe.items[0].received_at < min(page.low, end)):
                return True
            if size == MAX_MESSAGES:
                return False
            size = min(MAX_MESSAGES, 2 * size)

    def _forward(self, page: _Slice) -> CursorSteps[None]:
        """Read by `after`, given the oldest page, where `after` gives the oldest ones."""
        size = 0
        while True:
            edge = page.high
            if not page.has_more or self._is_past_upper(page.items[-1]):
                self._emit(page.items)
                return
            if self._emit(item for item in page.items if item.received_at < edge):
                return
            held = {item.id for item in page.items if item.received_at == edge}
            size = max(size, self._want(held=len(held)))
            was_inclusive = self._includes_after
            following = yield from self._ask(size, start=edge)
            items = [item for item in following.items if item.received_at >= edge]
            if not held <= {item.id for item in items}:
                if self._includes_after and not was_inclusive:
                    page = _Slice([item for item in page.items if item.received_at == edge], has_more=True)
                    continue
                # Not what follows: messages came so fast that this is the newest page after all.
                yield from self._climb(shift(edge, -TICK))
                return
            page = _Slice(items, following.has_more)
            if page.high > edge or not page.has_more:
                size = 0
            elif size < MAX_MESSAGES:
                size = min(MAX_MESSAGES, 2 * size)
            else:
                group = yield from self._group(edge)
                if self._emit(group):
                    return
                page = yield from self._open(self._end_of(edge))
                page = _Slice([item for item in page.items if item.received_at > edge], page.has_more)
                if not page.items and not page.has_more:
                    return
                # An empty one is full of the instant at its boundary, which the API includes.
                if page.has_more and not (page.items and (yield from self._is_next(page, edge))):
                    yield from self._climb(edge)
                    return
                size = 0

    def _climb(self, done: datetime | None) -> CursorSteps[None]:
        """Read by `before`, oldest first: down to what has gone out, noting where each page began, then up again.

        Each page is read twice, and one is held at a time. `done`: what is printed up to then has gone out.
        """
        settled: datetime | None = None  # all that the server has before this instant has gone out
        stack = [(self._top(), self._page_size)]
        while stack:
            end, size = stack[-1]
            was_inclusive = self._includes_before
            page = yield from self._ask(size, end=end)
            # A boundary that is included adds a part of the group that begins there.
            whole = [item for item in page.items if end is None or item.received_at < end]
            items = [item for item in whole if done is None or item.received_at > done]
            if not page.has_more or len(items) < len(whole) or (items and self._is_past_lower(items[0])):
                if self._emit(items):
                    return
                done, settled = (items[-1].received_at if items else done), end
                stack.pop()
            elif not items:
                if was_inclusive or not self._includes_before:
                    raise self._contradiction(end)
            else:
                low = items[0].received_at
                if end is None or self._end_of(low) < end:
                    held = sum(item.received_at == low for item in items)
                    stack.append((self._end_of(low), min(MAX_MESSAGES, self._page_size + held)))
                elif size < MAX_MESSAGES:
                    stack[-1] = (end, min(MAX_MESSAGES, 2 * size))
                elif settled == low:
                    group = yield from self._group(low)
                    if self._emit(group):
                        return
                    done, settled = low, end
                    stack.pop()
                else:
                    stack.append((low, self._page_size))

    # One instant

    def _group(self, instant: datetime) -> CursorSteps[list[Message]]:
        """Read every message printed as `instant`, when they fill more than the largest page.

        It reads pages that end at ever earlier instants inside the printed unit. Each must share a message with the one
        above it, so that nothing lies between, and bring a new one.
        """
        found: dict[str, Message] = {}
        known: set[str] = set()
        upper = self._end_of(instant)
        step = self._unit / 2
        page = yield from self._ask(MAX_MESSAGES, end=upper)
        while True:
            found.update((item.id, item) for item in page.items if item.received_at == instant)
            if not page.has_more or page.low < instant:
                return sorted(found.values(), key=key)
            if self._end_of(instant) < upper:  # finer digits have shown: the group is narrower than it seemed
                upper = self._end_of(instant)
                page = yield from self._ask(MAX_MESSAGES, end=upper)
                continue
            above = {item.id for item in page.items}
            known |= above
            lower, guess = instant, upper - step
            while upper - lower > TICK:
                if not lower < guess < upper:
                    guess = lower + (upper - lower) // 2
                page = yield from self._ask(MAX_MESSAGES, end=guess)
                ids = {item.id for item in page.items}
                if not ids & above:
                    lower = guess
                elif page.has_more and page.low >= instant and ids <= known:
                    upper, step = guess, min(2 * step, self._unit)
                else:
                    step, upper = upper - guess, guess
                    break
            else:
                upper, tick = yield from self._tick(instant, lower)
                found.update((item.id, item) for item in tick.items if item.received_at == instant)
                page = yield from self._ask(MAX_MESSAGES, end=upper)

    def _tick(self, instant: datetime, tick: datetime) -> CursorSteps[tuple[datetime, _Slice]]:
        """Read one instant of the server's own clock; give the end to go on from, and what it holds."""
        page = yield from self._ask(MAX_MESSAGES, start=tick, end=tick + TICK)
        known = self._includes_after, self._includes_before
        if page.has_more and not all(known):
            # Perhaps the API includes its boundaries, so that the neighbours count too, and what is full may be the
            # next instant. Only such an API gives anything for a stretch that ends where it starts.
            for exact in (tick + TICK, tick):
                self._includes_after = self._includes_before = True
                alone = yield from self._ask(MAX_MESSAGES, start=exact, end=exact + TICK)
                if not alone.items:
                    self._includes_after, self._includes_before = known
                else:
                    page, tick = alone, exact
                    break
        if page.has_more:
            raise PaginationError(
                f"More than {MAX_MESSAGES} messages were received at {instant.isoformat()}, more than a page can hold,"
                " and the API has no cursor inside an instant. All that the order allows was given before; to go on"
                " behind that instant, give it as before= or after=."
            )
        return tick, page

    # What all of them use

    def _ask(self, limit: int, *, start: datetime | None = None, end: datetime | None = None) -> CursorSteps[_Slice]:
        """Ask for a page of a stretch of time, and learn from what it shows of the API."""
        after = start if start is None or self._includes_after else shift(start, -TICK)
        before = end if end is None or not self._includes_before else shift(end, -TICK)
        request = CursorRequest(limit=limit, before=before, after=after)
        for _ in range(PATIENCE):
            (page,) = yield (request,)
            items = sorted({item.id: item for item in page.data}.values(), key=key)
            for item in items:
                self._learn_unit(item.received_at)
                # Each tells of itself alone: stretches may be half open, and clocks finer than what is printed.
                self._includes_before |= before is not None and item.received_at >= before
                self._includes_after |= self._unit == TICK and item.received_at == after
            if items or not page.has_more:
                return _Slice(items, page.has_more)
        raise self._contradiction(end or start)

    def _contradiction(self, cursor: datetime | None) -> PaginationError:
        where = "" if cursor is None else f" at {cursor.isoformat()}"
        return PaginationError(
            f"The messages{where} go in circles: the page holds nothing that was not read before, and still says"
            " hasMore. The API or a proxy is at fault."
        )

    def _learn_unit(self, printed: datetime) -> None:
        """Notice the finest digits that the API prints."""
        if printed.microsecond % 1000:
            self._unit = TICK
        elif printed.microsecond:
            self._unit = min(self._unit, MILLISECOND)

    def _end_of(self, instant: datetime) -> datetime:
        """Give the end of the group that is printed as `instant`."""
        return shift(instant, self._unit)

    def _top(self) -> datetime | None:
        """Give the end of what is wanted; None for now."""
        if self._before is None:
            return None
        if self._before.message_id is not None:
            return self._end_of(self._before.instant)
        beyond = (self._before.instant - BEFORE_ALL_MESSAGES) % self._unit
        return shift(self._before.instant, self._unit - beyond if beyond else beyond)

    def _want(self, held: int = 0) -> int:
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


def shift(instant: datetime, by: timedelta) -> datetime:
    """Add to an instant, as far as the calendar goes: the years 1 and 9999 stand for nothing and for ever."""
    try:
        return instant + by
    except OverflowError:
        return (datetime.max if by > timedelta(0) else datetime.min).replace(tzinfo=UTC)


def key(item: Message) -> tuple[datetime, str]:
    return item.received_at, item.id
